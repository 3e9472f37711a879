"""From a model to a module: the phases tied together, timed, and proved at the end.

import -> graph passes and schedules -> reference outputs -> code generation,
linking -> the module is loaded and compared with the reference
"""

from __future__ import annotations

import logging
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ArtifactError, VerificationError
from tinsmith.compiler.evaluate.compare import Difference, compare_all
from tinsmith.compiler.evaluate.reference import Reference, Settlement
from tinsmith.compiler.evaluate.roofline import cpu_name
from tinsmith.compiler.frontends.frontend import ModelSource
from tinsmith.compiler.host import Host
from tinsmith.compiler.levels import compile_levels, target_list
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.levels import level_folder
from tinsmith.compiler.module.loader import Module, load
from tinsmith.compiler.module.manifest import LatencyEntry, Manifest, read_manifest, update_measured
from tinsmith.compiler.module.write.folder import set_aside
from tinsmith.compiler.module.write.writer import new_module, replace_golden
from tinsmith.compiler.preparation import Clock, prepare, target_of
from tinsmith.compiler.processes import at_end
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.quantization.report import QuantizationReport
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.compiler.tuning.coverage import tuning_of
from tinsmith.compiler.tuning.decisions import stored_decisions
from tinsmith.compiler.words import config_of
from tinsmith.passes.progress import Progress

_LATENCY_SECONDS = 0.3
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileReport:
    """What a compilation did.

    `path` is the module's folder, `seconds` the time of each phase, `pass_seconds` that
    of each graph pass in order, `peak_memory_bytes` the largest memory of this process
    or of a tool it ran. `reference` names what the golden vectors were computed by, and
    `differences` how far the module is from them (empty if it cannot run on this machine).
    `coverage` says how many kernels have tuning records.
    """

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    pass_seconds: tuple[tuple[str, float], ...]
    peak_memory_bytes: int
    reference: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)
    quantization: QuantizationReport | None = None
    pruning: PruneReport | None = None
    coverage: str = ""

    @property
    def size_bytes(self) -> int:
        """Size of what has to be deployed: the library and the weights beside it."""
        return self.manifest.deployed_bytes

    def summary(self) -> str:
        """One line for a person."""
        form = self.manifest.form
        if self.manifest.vm_reason:
            form += f" ({self.manifest.vm_reason})"
        parts = [
            form,
            byte_size(self.size_bytes),
            f"{len(self.manifest.kernels)} kernels",
        ]
        latency = self.manifest.measured.latency
        if latency:
            sizes = "".join(f" for {name} {size}" for name, size in latency.sizes.items())
            parts.append(f"{latency.median_ms:.3f} ms{sizes} with {latency.threads} threads")
        if self.differences:
            worst = max(difference.relative for difference in self.differences)
            parts.append(f"agrees with {self.reference} to {worst:.1e} of the range")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds, sizes in bytes."""
        return {
            "path": str(self.path),
            "target": self.manifest.target.name,
            "form": self.manifest.form,
            "vm_reason": self.manifest.vm_reason,
            "size_bytes": self.size_bytes,
            "kernels": len(self.manifest.kernels),
            "seconds": self.seconds,
            "passes": [{"name": name, "seconds": seconds} for name, seconds in self.pass_seconds],
            "peak_memory_bytes": self.peak_memory_bytes,
            "reference": self.reference,
            "differences": [difference.to_dict() for difference in self.differences],
            "measured": self.manifest.measured.to_dict(),
            "notes": list(self.notes),
            "coverage": self.coverage,
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
        }


def compile(
    model: ModelSource,
    target: str | Sequence[str] | None = None,
    *,
    output: str | Path | None = None,
    config: CompileConfig | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Module:
    """Compile an ONNX model and load the module, ready to be called.

        module = tinsmith.compile(
            "resnet50.onnx", target="native", shapes={"input": (1, 3, 224, 224)},
            quantize="int8", calibration="photos/", mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225), prune=0.3, output="out/",
        )

    model: a file, or an onnx.ModelProto in memory.
    target: a name that `tinsmith targets` lists; None is the machine at hand.
    output: the folder to write the module to, in the place of a module that is there. Without
        it the module lives in a temporary folder as long as the result does.
    config: options as one object; `options` win over it.
    progress: called with the name of the phase and the share of the whole that is done.
    options: fields of CompileConfig (`shapes`, `constants`, `threads`, `dump`, `log`, ...), and the
        words of `tinsmith compile`, with underscores. Of samples: `calibration` (a path, an array,
        an iterable of samples, or "random"), `samples`, `mean`, `std`, `pixel_range`, `layout`,
        `resize`, `labels`, `evaluation`. Of quantising: `quantize` (the format), `observer`,
        `rounding`, `equalize`, `smooth`, `correct_bias`, `group_size`, `keep_float`, `max_drop`,
        `min_agreement`, `fallback`. Of pruning: `prune` (the ratio) or `prune_flops`,
        `prune_params` or `prune_latency`, `sparsity`, `prune_criterion`, `prune_allocation`,
        `prune_residual`, `prune_alignment`, `prune_steps`, `keep_group`, `recover`,
        `distill_minutes`, `augment`. CompileConfig, QuantizationConfig and PruneConfig say what
        they mean; `quantization` and `pruning` take such an object instead.

    What the compilation did is logged under "tinsmith": phases at INFO, notes at WARNING.

    Raises a subclass of TinsmithError: ModelError for a model that cannot be read or compiled
    (ShapeError, UnsupportedOpError, UnsafeModelError are such), TargetError, ConfigError for
    options, InputError for samples, BuildError where no module can be written, VerificationError
    if the module does not compute what the reference does, PassError for a bug, and
    ArtifactError if the module is for another machine: use `compile_to` for those.
    """
    if target is not None:
        options["target"] = target
    config = config_of(options, config)
    temporary = None
    if output is None:
        temporary = ScratchFolder()
        output = temporary.path / "module"
    try:
        report = compile_to(model, output, config=config, progress=progress)
        module = load(report.path, threads=config.threads)
    except VerificationError as error:
        if temporary is None:
            raise
        temporary.close()
        told = str(error).partition("; ")[0].replace(str(temporary.path), "the module")
        raise VerificationError(f"{told}; give `output` to keep it and find the cause") from error
    except BaseException:
        if temporary is not None:
            temporary.close()
        raise
    if temporary is not None:
        at_end(module, temporary.close)
    return module


def compile_to(
    model: ModelSource,
    output: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    config: CompileConfig | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> CompileReport:
    """Compile an ONNX model into the folder `output`, for this machine or another.

    Arguments and errors are those of `compile`. A module for this machine is run once on its
    golden vectors; if it disagrees, VerificationError is raised, what was at `output` stays, and
    the module is put beside it, for `tinsmith verify --bisect`. The report of a module for
    several targets is that of the level that this machine runs best.
    """
    if target is not None:
        options["target"] = target
    config = config_of(options, config)
    if len(target_list(config.target)) > 1:
        return _compile_levels(model, Path(output), config, progress)
    spec = target_of(config)
    clock = Clock(progress, config.pruning is not None)
    known = stored_decisions(config, spec)
    records, algorithms = known.records, known.algorithms
    prepared = prepare(
        model, config, spec, clock, records, algorithms=algorithms, host=Host.at_hand()
    )
    notes = [*known.unread, *prepared.notes]
    forms = ["shared"]
    forms += ["static"] if config.static_library else []
    forms += ["runner"] if config.runner else []
    output = Path(output)
    differences: tuple[Difference, ...] = ()
    reference = prepared.reference
    fused = {variable.name_hint: f for variable, f in prepared.pipeline.fused.functions.items()}
    tuning = tuning_of(prepared.pipeline.kernels, fused, records, algorithms)
    found: dict[str, Any] = {"tuning": tuning, "float_model": prepared.float_model}
    if prepared.quantization is not None:
        found["quantization"] = prepared.quantization.to_dict()
    if prepared.pruning is not None:
        found["pruning"] = prepared.pruning.to_dict()
    with ExitStack() as stack:
        with clock.phase("build"):
            written = stack.enter_context(
                new_module(
                    prepared.lowered,
                    output,
                    golden=prepared.golden,
                    forms=forms,
                    embed_weights=config.embed_weights,
                    builds=prepared.builds,
                )
            )
        manifest = written.manifest
        with clock.phase("prove"):
            try:
                module = load(written.path, threads=config.threads)
            except ArtifactError as error:
                notes.append(f"not run here: {str(error).replace(str(written.path), str(output))}")
            else:
                with module:
                    proved = []
                    for golden in prepared.golden:
                        # Others are asked of the largest sizes alone, at which the model was read.
                        judge = prepared.judge if golden is prepared.golden[-1] else None
                        settled = _prove(module, golden, reference, judge, output)
                        differences, label = settled.differences, settled.label
                        if settled.note:
                            outputs = tuple(settled.expected[t.name] for t in manifest.outputs)
                            golden = replace(golden, outputs=outputs, tolerance=settled.tolerance)
                            notes.append(settled.note)
                        proved.append(golden)
                    if proved:
                        reference = label
                        if any(a is not b for a, b in zip(proved, prepared.golden, strict=True)):
                            replace_golden(written.path, proved)
                        found["latency"] = _latency(module, proved[0])
            manifest = update_measured(written.path, **found)
    switched_on = algorithms.switched_on()
    if switched_on and differences:
        worst = max(difference.relative for difference in differences)
        notes.append(
            f"Winograd's algorithm in {switched_on} convolutions by tuning records: all in all "
            f"the results differ from {reference} by {worst:.1e} of their range"
        )
    for note in notes:
        _LOGGER.warning("%s: %s", output, note)
    report = CompileReport(
        path=output,
        manifest=manifest,
        seconds=clock.seconds,
        pass_seconds=tuple((timing.name, timing.seconds) for timing in prepared.pipeline.passes),
        peak_memory_bytes=_peak_memory(),
        reference=reference,
        differences=differences,
        notes=tuple(notes),
        quantization=prepared.quantization,
        pruning=prepared.pruning,
        coverage=tuning.coverage,
    )
    _LOGGER.info("%s: %s", output, report.summary())
    return report


def _compile_levels(
    model: ModelSource, output: Path, config: CompileConfig, progress: Progress | None
) -> CompileReport:
    """`compile_to` for several targets."""
    reports: dict[str, CompileReport] = {}

    def one(folder: Path, chosen: CompileConfig, part: Progress | None) -> tuple[str, ...]:
        report = compile_to(model, folder, config=chosen, progress=part)
        reports[report.manifest.target.name] = report
        return report.notes

    notes = compile_levels(output, config, progress, one)
    manifest = read_manifest(level_folder(output))
    best = reports[manifest.target.name]
    listed = ", ".join(reports)
    notes = (f"levels {listed}; this machine takes {manifest.target.name}", *notes)
    return replace(best, path=output, notes=notes)


def _prove(
    module: Module, golden: GoldenVectors, label: str, judge: Reference | None, output: Path
) -> Settlement:
    """How the module does on its golden vectors, computed by `label`.

    Where it disagrees and `judge` is there, that asks other implementations for the last word.
    If nobody agrees with the module, it is put beside `output`, and VerificationError raised.
    """
    names = [tensor.name for tensor in module.manifest.outputs]
    expected = dict(zip(names, golden.outputs, strict=True))
    actual = dict(zip(names, module.run(golden.inputs), strict=True))
    differences = compare_all(actual, expected, golden.tolerance)
    settled = Settlement(label, expected, golden.tolerance, differences)
    if judge is not None and not settled.agrees:
        inputs = dict(zip((t.name for t in module.manifest.inputs), golden.inputs, strict=True))
        settled = judge.settle(inputs, actual, expected)
    wrong = [difference for difference in settled.differences if not difference.agrees]
    if wrong:
        before = f"; the module at {output} is as it was" if output.exists() else ""
        failed = set_aside(module.path, output)
        raise VerificationError(
            f"{failed}: output {wrong[0].name} does not agree with the reference "
            f"({wrong[0].told}){before}; "
            f"find the cause with: tinsmith verify {failed} --model MODEL.onnx --bisect"
        )
    return settled


def _latency(module: Module, golden: GoldenVectors) -> LatencyEntry:
    """Median latency of a fraction of a second of runs."""
    times: list[float] = []
    sizes = {d.name: n for d, n in zip(module.manifest.dims, golden.sizes, strict=True)}
    deadline = time.perf_counter() + _LATENCY_SECONDS
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 1000):
        begin = time.perf_counter()
        module.run(golden.inputs)
        times.append(time.perf_counter() - begin)
    return LatencyEntry(
        statistics.median(times[1:]) * 1e3, len(times) - 1, module.threads, cpu_name(), sizes
    )


def _peak_memory() -> int:
    """Bytes: the largest resident size of this process so far, or of a tool it ran."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024
