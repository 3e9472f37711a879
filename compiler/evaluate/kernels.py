"""What each kernel of a module does, how long it takes, and how near the roofline that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.evaluate.inputs import random_inputs, signature_of
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.loader import Module, load, verify_files
from tinsmith.compiler.module.machine import check_machine
from tinsmith.compiler.module.manifest import KernelEntry, Manifest
from tinsmith.passes.progress import Progress

if TYPE_CHECKING:
    from tinsmith.compiler.evaluate.roofline import Roofline


@dataclass(frozen=True)
class KernelRow:
    """One kernel. `flops`, `bytes` and `seconds` are those of all its `calls` in one run.

    `arithmetic` names what is multiplied or compared, empty where that is not stated.
    `known_work` is whether a template stated FLOPs and bytes; without, the share of the
    roofline is 0 and means nothing. `decisions` are the template's, `nodes` the names of the
    model's nodes behind it. Of a module that does not
    run here `seconds` and the shares are 0.
    """

    name: str
    template: str
    arithmetic: str
    decisions: Mapping[str, int]
    source: str
    calls: int
    flops: int
    bytes: int
    seconds: float
    share_of_time: float
    share_of_roofline: float
    known_work: bool
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelsReport:
    """The kernels of a module, slowest first, and the ceilings they are compared with.

    Of a module that this machine cannot run, `not_run` says why; then there are no times and no
    ceilings, and the kernels come in the order of their operations, most first. Where only
    `tinsmith-runtime` is installed, there are times and no ceilings.
    """

    path: Path
    manifest: Manifest
    threads: int
    roofline: Roofline | None
    rows: tuple[KernelRow, ...]
    not_run: str = ""

    @property
    def seconds(self) -> float:
        """All kernels together, in one run."""
        return sum(row.seconds for row in self.rows)

    @property
    def share_of_roofline(self) -> float:
        """The time that the ceilings allow for, divided by the time taken."""
        ideal = sum(row.seconds * row.share_of_roofline for row in self.rows)
        return ideal / self.seconds if self.seconds else 0.0

    def header(self) -> tuple[str, ...]:
        """Lines that describe the module."""
        m = self.manifest
        tensors = ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in m.inputs)
        results = ", ".join(f"{t.name} {list(t.shape)} {t.dtype}" for t in m.outputs)
        return (
            f"{self.path}: {m.name}, {m.form}, for {m.target.name} ({m.target.cpu})",
            f"inputs: {tensors}",
            f"outputs: {results}",
            f"weights {m.weights_bytes / 2**20:.2f} MiB "
            f"({_where_weights_are(m)}), "
            f"arena {m.arena_bytes / 2**20:.2f} MiB, Tinsmith {m.tinsmith}, TVM {m.tvm}",
            f"needs {', '.join(m.target.cpu_features) or m.target.architecture}; "
            f"{len(m.files)} files, {sum(file.bytes for file in m.files.values()) / 2**20:.2f} MiB"
            f"{_measured(m)}",
            *(f"note: {remark}" for remark in m.notes),
        )

    def footer(self) -> tuple[str, ...]:
        """Lines with the totals and the ceilings."""
        flops = sum(row.flops for row in self.rows)
        naive = [row.name for row in self.rows if not row.known_work]
        if self.not_run:
            lines = [
                f"{len(self.rows)} kernels, {sum(row.calls for row in self.rows)} calls, "
                f"{flops / 1e6:.2f} MFLOP; not run: {self.not_run}"
            ]
            return (*lines, *_without_template(naive))
        total = (
            f"{len(self.rows)} kernels, {self.seconds * 1e3:.3f} ms with {self.threads} threads, "
            f"{flops / max(self.seconds, 1e-12) / 1e9:.0f} GFLOP/s"
        )
        if self.roofline is None:
            return (total, *_without_template(naive))
        ceilings = ", ".join(
            f"{rate / 1e9:.0f} GB/s up to {size / 2**20:.1f} MiB"
            for size, rate in self.roofline.bandwidth
        )
        lines = [
            f"{total}, {self.share_of_roofline:.0%} of the roofline",
            f"roofline: {self.roofline.flops_per_second / 1e9:.0f} GFLOP/s, {ceilings} "
            f"({self.roofline.cpu}, {self.roofline.threads} threads)",
        ]
        return (*lines, *_without_template(naive))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds, bytes, operations."""
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "form": self.manifest.form,
            "target": self.manifest.target.to_dict(),
            "inputs": [tensor.to_dict() for tensor in self.manifest.inputs],
            "outputs": [tensor.to_dict() for tensor in self.manifest.outputs],
            "weights_bytes": self.manifest.weights_bytes,
            "arena_bytes": self.manifest.arena_bytes,
            "measured": self.manifest.measured.to_dict(),
            "threads": self.threads,
            "not_run": self.not_run or None,
            "seconds": None if self.not_run else self.seconds,
            "share_of_roofline": self.share_of_roofline if self.roofline else None,
            "roofline": asdict(self.roofline) if self.roofline else None,
            "kernels": [asdict(row) for row in self.rows],
        }


def inspect(
    path: Path,
    runs: int = 10,
    threads: int = 2,
    progress: Progress | None = None,
) -> KernelsReport:
    """Profile a module (`runs` runs, medians) against this machine's roofline.

    Of a module for another machine all is told that needs no run. Raises ArtifactError if the
    module is damaged, BuildError if the roofline's microbenchmark cannot be built.
    """
    show = progress or (lambda phase, share: None)
    show("digests", 0.0)
    manifest = verify_files(path)
    try:
        check_machine("module", manifest.target)
    except ArtifactError as error:
        return _described(path, manifest, threads, str(error).removeprefix("module: "))
    show("roofline (measured once)", 0.1)
    roofline = _ceilings(threads)
    with load(path, threads=threads) as module:
        show("profile", 0.7)
        manifest = module.manifest
        inputs = largest_inputs(module)  # what the kernels count is of the largest size
        module.run(inputs)
        steps = module.profile(inputs, runs)
    by_kernel: dict[str, list[float]] = {}
    for step in steps:
        by_kernel.setdefault(step.kernel, []).append(step.seconds)
    if roofline is not None and _beats(roofline, manifest, by_kernel):
        show("roofline (again)", 0.8)
        roofline = _ceilings(threads, again=True)
    total = sum(step.seconds for step in steps)
    entries = {entry.name: entry for entry in manifest.kernels}
    rows = [
        _row(entries.get(name, KernelEntry(name, len(times))), times, total, roofline)
        for name, times in by_kernel.items()
    ]
    rows.sort(key=lambda row: -row.seconds)
    return KernelsReport(path, manifest, threads, roofline, tuple(rows))


def largest_inputs(module: Module) -> tuple[np.ndarray, ...]:
    """Inputs of the largest size that a module takes: its golden ones, or else random ones."""
    golden = module.golden_sets()
    if golden:
        return golden[-1].inputs
    largest = module.manifest.sized(module.manifest.extreme_sizes[1])
    return tuple(random_inputs(signature_of(largest.inputs), {}, seed=0).values())


def _ceilings(threads: int, again: bool = False) -> Roofline | None:
    """Those of this machine; None where only the runtime is installed, which has no compiler."""
    try:
        from tinsmith.compiler.evaluate.roofline import cached
    except ModuleNotFoundError:
        return None
    return cached(threads, vector_bits(), again=again)


def _described(path: Path, manifest: Manifest, threads: int, reason: str) -> KernelsReport:
    """The report of a module that does not run here."""
    rows = [_row(entry, [0.0] * entry.calls, 0.0, None) for entry in manifest.kernels]
    rows.sort(key=lambda row: -row.flops)
    return KernelsReport(path, manifest, threads, None, tuple(rows), reason)


def _measured(manifest: Manifest) -> str:
    """The latency that was measured where the module was compiled, if it was."""
    latency = manifest.measured.latency
    if not latency:
        return ""
    return (
        f"; {latency.median_ms:.3f} ms with {latency.threads} threads when it was compiled "
        f"({latency.cpu or 'unknown CPU'})"
    )


def _without_template(names: Sequence[str]) -> tuple[str, ...]:
    return (f"without a template: {', '.join(names)}",) if names else ()


def _where_weights_are(manifest: Manifest) -> str:
    if manifest.weights_embedded:
        return "embedded"
    return f"in weights.bin, {'mapped' if manifest.weights_mapped else 'read into memory'}"


def _beats(roofline: Roofline, manifest: Manifest, times: Mapping[str, list[float]]) -> bool:
    """Whether a kernel computes faster than the peak: then the machine was busy when measured."""
    return any(
        entry.flops / min(times[entry.name]) > roofline.flops_per_second
        for entry in manifest.kernels
        if entry.name in times and min(times[entry.name]) > 0
    )


def vector_bits() -> int:
    """Width of this machine's widest vector registers, for the peak of the roofline."""
    return Host.at_hand().spec.vector_bits


def _row(
    entry: KernelEntry, times: list[float], total: float, roofline: Roofline | None
) -> KernelRow:
    calls, seconds = len(times), sum(times)
    flops, traffic = entry.flops, entry.bytes
    return KernelRow(
        name=entry.name,
        template=entry.template or "none",
        arithmetic=entry.arithmetic,
        decisions=dict(entry.decisions),
        source=entry.source or "-",
        calls=calls,
        flops=flops * calls,
        bytes=traffic * calls,
        seconds=seconds,
        share_of_time=seconds / total if total else 0.0,
        share_of_roofline=roofline.share(flops, traffic, seconds / calls) if roofline else 0.0,
        known_work=bool(flops or traffic),
        nodes=entry.nodes,
    )
