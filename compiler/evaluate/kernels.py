"""What each kernel of a module does, how long it takes, and how near the roofline that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinsmith.compiler.evaluate.inputs import random_inputs, signature_of
from tinsmith.compiler.evaluate.roofline import Roofline, cached
from tinsmith.compiler.module.loader import load, verify_files
from tinsmith.compiler.module.machine import cpu_features
from tinsmith.compiler.module.manifest import Manifest


@dataclass(frozen=True)
class KernelRow:
    """One kernel. `flops`, `bytes` and `seconds` are those of all its `calls` in one run.

    `arithmetic` names what is multiplied or compared, empty where that is not stated.
    `known_work` is whether a template stated FLOPs and bytes; without, the share of the
    roofline is 0 and means nothing. `decisions` are the template's.
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


@dataclass(frozen=True)
class KernelsReport:
    """The kernels of a module, slowest first, and the ceilings they are compared with."""

    path: Path
    manifest: Manifest
    threads: int
    roofline: Roofline
    rows: tuple[KernelRow, ...]

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
            f"{self.path}: {m.name}, {m.form}, for {m.target['name']} ({m.target['cpu']})",
            f"inputs: {tensors}",
            f"outputs: {results}",
            f"weights {m.weights_bytes / 2**20:.2f} MiB "
            f"({_where_weights_are(m)}), "
            f"arena {m.arena_bytes / 2**20:.2f} MiB, Tinsmith {m.tinsmith}, TVM {m.tvm}",
            *(f"note: {remark}" for remark in m.notes),
        )

    def footer(self) -> tuple[str, ...]:
        """Lines with the totals and the ceilings."""
        flops = sum(row.flops for row in self.rows)
        naive = [row.name for row in self.rows if not row.known_work]
        ceilings = ", ".join(
            f"{rate / 1e9:.0f} GB/s up to {size / 2**20:.1f} MiB"
            for size, rate in self.roofline.bandwidth
        )
        lines = [
            f"{len(self.rows)} kernels, {self.seconds * 1e3:.3f} ms with {self.threads} threads, "
            f"{flops / max(self.seconds, 1e-12) / 1e9:.0f} GFLOP/s, "
            f"{self.share_of_roofline:.0%} of the roofline",
            f"roofline: {self.roofline.flops_per_second / 1e9:.0f} GFLOP/s, {ceilings} "
            f"({self.roofline.cpu}, {self.roofline.threads} threads)",
        ]
        if naive:
            lines.append(f"without a template: {', '.join(naive)}")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds, bytes, operations."""
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "form": self.manifest.form,
            "target": dict(self.manifest.target),
            "inputs": [asdict(tensor) for tensor in self.manifest.inputs],
            "outputs": [asdict(tensor) for tensor in self.manifest.outputs],
            "weights_bytes": self.manifest.weights_bytes,
            "arena_bytes": self.manifest.arena_bytes,
            "measured": dict(self.manifest.measured),
            "threads": self.threads,
            "seconds": self.seconds,
            "share_of_roofline": self.share_of_roofline,
            "roofline": asdict(self.roofline),
            "kernels": [asdict(row) for row in self.rows],
        }


def inspect(
    path: Path,
    runs: int = 10,
    threads: int = 2,
    progress: Callable[[str, float], None] | None = None,
) -> KernelsReport:
    """Profile a module (`runs` runs, medians) against this machine's roofline.

    Raises ArtifactError if the module is damaged or for another machine, BuildError if
    the roofline's microbenchmark cannot be built.
    """
    show = progress or (lambda phase, share: None)
    show("digests", 0.0)
    verify_files(path)
    show("roofline (measured once)", 0.1)
    roofline = cached(threads, vector_bits())
    with load(path, threads=threads) as module:
        show("profile", 0.7)
        manifest, golden = module.manifest, module.golden()
        if golden is not None:
            inputs = golden.inputs
        else:
            inputs = tuple(random_inputs(signature_of(manifest.inputs), {}, seed=0).values())
        module.run(inputs)
        steps = module.profile(inputs, runs)
    by_kernel: dict[str, list[float]] = {}
    for step in steps:
        by_kernel.setdefault(step.kernel, []).append(step.seconds)
    if _beats(roofline, manifest, by_kernel):
        show("roofline (again)", 0.8)
        roofline = cached(threads, vector_bits(), again=True)
    total = sum(step.seconds for step in steps)
    entries = {str(entry["name"]): entry for entry in manifest.kernels}
    rows = [
        _row(entries.get(name, {"name": name}), times, total, roofline)
        for name, times in by_kernel.items()
    ]
    rows.sort(key=lambda row: -row.seconds)
    return KernelsReport(path, manifest, threads, roofline, tuple(rows))


def _where_weights_are(manifest: Manifest) -> str:
    if manifest.weights_embedded:
        return "embedded"
    return f"in weights.bin, {'mapped' if manifest.weights_mapped else 'read into memory'}"


def _beats(roofline: Roofline, manifest: Manifest, times: Mapping[str, list[float]]) -> bool:
    """Whether a kernel computes faster than the peak: then the machine was busy when measured."""
    return any(
        float(entry.get("flops", 0)) / min(times[str(entry["name"])]) > roofline.flops_per_second
        for entry in manifest.kernels
        if entry["name"] in times and min(times[str(entry["name"])]) > 0
    )


def vector_bits() -> int:
    """Width of this machine's widest vector registers, for the peak of the roofline."""
    features = cpu_features()
    if "avx512f" in features:
        return 512
    return 256 if "avx2" in features else 128


def _row(
    entry: Mapping[str, Any], times: list[float], total: float, roofline: Roofline
) -> KernelRow:
    calls, seconds = len(times), sum(times)
    flops, traffic = int(entry.get("flops", 0)), int(entry.get("bytes", 0))
    return KernelRow(
        name=str(entry["name"]),
        template=str(entry.get("template", "none")),
        arithmetic=str(entry.get("arithmetic", "")),
        decisions=dict(entry.get("decisions", {})),
        source=str(entry.get("source", "-")),
        calls=calls,
        flops=flops * calls,
        bytes=traffic * calls,
        seconds=seconds,
        share_of_time=seconds / total if total else 0.0,
        share_of_roofline=roofline.share(flops, traffic, seconds / calls),
        known_work=bool(flops or traffic),
    )
