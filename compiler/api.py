"""From a model to a module: the phases tied together, timed, and proved at the end.

import -> graph passes and schedules -> reference outputs -> code generation,
linking -> the module is loaded and compared with the reference
"""

from __future__ import annotations

import resource
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.config import CompileConfig
from compiler.errors import ArtifactError, ModelError, TargetError, VerificationError
from compiler.evaluate.compare import QUANTIZED_TOLERANCE, Difference, compare_all
from compiler.evaluate.inputs import index_bounds, random_inputs
from compiler.evaluate.reference import Reference
from compiler.evaluate.roofline import cpu_name
from compiler.frontends.onnx import ImportedModel, import_onnx
from compiler.module.golden import GoldenVectors
from compiler.module.loader import Module, load
from compiler.module.lowered import LoweredModel
from compiler.module.manifest import Manifest, update_measured
from compiler.module.writer import write_module
from compiler.pipeline import lower
from compiler.quantization.quantizer import Quantizer
from compiler.quantization.report import QuantizationReport
from targets.registry import get_target
from targets.spec import TargetSpec, UnknownTargetError

if TYPE_CHECKING:
    from onnx import ModelProto

Progress = Callable[[str, float], None]

# About where each phase begins, as a share of the whole: for the progress bar.
_BEGIN = {"import": 0.0, "lower": 0.1, "reference": 0.45, "build": 0.5, "prove": 0.95}
_LATENCY_SECONDS = 0.3


@dataclass(frozen=True)
class CompileReport:
    """What a compilation did.

    `path` is the module's folder, `seconds` the time of each phase, `pass_seconds` that
    of each graph pass in order, `peak_memory_bytes` the largest memory of this process
    or of a tool it ran. `reference` names what the golden vectors were computed by, and
    `differences` how far the module is from them (empty if it cannot run on this machine).
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
            f"{self.size_bytes / 2**20:.1f} MiB",
            f"{len(self.manifest.kernels)} kernels",
        ]
        latency = self.manifest.measured.get("latency")
        if latency:
            parts.append(f"{latency['median_ms']:.3f} ms with {latency['threads']} threads")
        if self.differences:
            worst = max(difference.relative for difference in self.differences)
            parts.append(f"agrees with {self.reference} to {worst:.1e} of the range")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in seconds, sizes in bytes."""
        return {
            "path": str(self.path),
            "target": self.manifest.target["name"],
            "form": self.manifest.form,
            "vm_reason": self.manifest.vm_reason,
            "size_bytes": self.size_bytes,
            "kernels": len(self.manifest.kernels),
            "seconds": self.seconds,
            "passes": [{"name": name, "seconds": seconds} for name, seconds in self.pass_seconds],
            "peak_memory_bytes": self.peak_memory_bytes,
            "reference": self.reference,
            "differences": [difference.to_dict() for difference in self.differences],
            "measured": dict(self.manifest.measured),
            "notes": list(self.notes),
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
        }


def compile(
    model: str | Path | ModelProto,
    target: str | None = None,
    *,
    output: str | Path | None = None,
    config: CompileConfig | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Module:
    """Compile an ONNX model and load the module, ready to be called.

    `target` is a name that `tinsmith targets` lists (default: the machine at hand).
    Without `output` the module lives in a temporary folder as long as the result does.
    `options` are fields of CompileConfig, and win over `config`.

    Raises a subclass of TinsmithError: ModelError, TargetError, ConfigError, BuildError,
    VerificationError if the module does not compute what the reference does, and
    ArtifactError if it is for another machine: use `compile_to` for those.
    """
    temporary = None
    if output is None:
        temporary = tempfile.mkdtemp(prefix="tinsmith-")
        output = Path(temporary) / "module"
    try:
        report = compile_to(
            model, output, target=target, config=config, progress=progress, **options
        )
        module = load(report.path)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if temporary is not None:
        weakref.finalize(module, shutil.rmtree, temporary, ignore_errors=True)
    return module


def compile_to(
    model: str | Path | ModelProto,
    output: str | Path,
    *,
    target: str | None = None,
    config: CompileConfig | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> CompileReport:
    """Compile an ONNX model into the folder `output`, for this machine or another.

    Arguments and errors are those of `compile`; `progress` is called with the name of
    the phase and the share of the whole that is done. A module for this machine is run
    once on its golden vectors; if it disagrees, VerificationError is raised and the
    module stays where it is, for `tinsmith verify --bisect`.
    """
    if target is not None:
        options["target"] = target
    config = (config or CompileConfig()).with_options(**options)
    spec = target_named(config.target)
    if config.threads:
        spec = replace(spec, cores=config.threads)
    clock = _Clock(progress)

    with clock.phase("import"):
        imported = import_onnx(model, config.shapes, config.constants)
    with clock.phase("lower"):
        quantizer = _quantizer(imported, config, spec, clock)
        scheduled, pipeline = lower(
            imported.module,
            spec,
            dump=config.dump,
            progress=lambda step, share: clock.show("lower", share, step),
            quantization=quantizer,
        )
    notes = [*imported.notes]
    lowered = LoweredModel(
        module=scheduled,
        spec=spec,
        input_names=imported.input_names,
        output_names=imported.output_names,
        kernels=pipeline.kernels,
        source_name=_model_name(imported.source),
        notes=imported.notes,
        pass_names=pipeline.pass_names,
        config=config.to_dict(),
    )
    with clock.phase("reference"):
        if quantizer is None:
            golden, reference = _golden(imported, config, notes)
        else:
            golden, reference = _quantized_golden(quantizer, config, notes)
    with clock.phase("build"):
        forms = ["shared"]
        forms += ["static"] if config.static_library else []
        forms += ["runner"] if config.runner else []
        written = write_module(
            lowered, output, golden=golden, forms=forms, embed_weights=config.embed_weights
        )
    differences: tuple[Difference, ...] = ()
    manifest = written.manifest
    with clock.phase("prove"):
        try:
            module = load(written.path, threads=config.threads)
        except ArtifactError as error:
            notes.append(f"not run here: {error}")
        else:
            with module:
                differences = _prove(module, golden)
                if golden is not None:
                    manifest = update_measured(written.path, latency=_latency(module, golden))
        if quantizer is not None and quantizer.report is not None:
            manifest = update_measured(written.path, quantization=quantizer.report.to_dict())
    return CompileReport(
        path=written.path,
        manifest=manifest,
        seconds=clock.seconds,
        pass_seconds=tuple((timing.name, timing.seconds) for timing in pipeline.passes),
        peak_memory_bytes=_peak_memory(),
        reference=reference,
        differences=differences,
        notes=tuple(notes),
        quantization=quantizer.report if quantizer is not None else None,
    )


def target_named(name: str) -> TargetSpec:
    """The target of that name; raises TargetError for one that is not known."""
    try:
        return get_target(name)
    except UnknownTargetError as error:
        raise TargetError(str(error)) from error


class _Clock:
    """Times the phases and tells the progress callback when one begins."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.show(name, 0.0)
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin

    def show(self, name: str, share_of_phase: float, step: str = "") -> None:
        if self._progress is not None:
            names = list(_BEGIN)
            later = names[names.index(name) + 1 :]
            begin, end = _BEGIN[name], _BEGIN[later[0]] if later else 1.0
            self._progress(step or name, begin + (end - begin) * share_of_phase)


def _model_name(source: str) -> str:
    """The name of the model's file without its folder and ending."""
    return Path(source).stem or "model"


def _signature(imported: ImportedModel) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each input by name."""
    return {
        name: (shape, dtype)
        for name, shape, dtype in zip(
            imported.input_names, imported.input_shapes, imported.input_dtypes, strict=True
        )
    }


def _quantizer(
    imported: ImportedModel, config: CompileConfig, spec: TargetSpec, clock: _Clock
) -> Quantizer | None:
    """What quantises the graph, if that is asked for."""
    if config.quantization is None:
        return None
    return Quantizer(
        config.quantization,
        spec,
        _signature(imported),
        index_bounds(imported.reference),
        _model_name(imported.source),
        config.threads,
        config.seed,
        progress=lambda step, share: clock.show("lower", share, step),
    )


def _quantized_golden(
    quantizer: Quantizer, config: CompileConfig, notes: list[str]
) -> tuple[GoldenVectors | None, str]:
    """A calibration sample with the quantised graph's own outputs, as this machine computes them.

    A float reference would not tell a broken kernel from rounding; what rounding costs stands
    in the quantisation report.
    """
    notes += quantizer.source.notes
    if not config.golden or quantizer.sample is None:
        return None, ""
    sample = quantizer.sample
    return (
        GoldenVectors(sample.inputs, sample.outputs, QUANTIZED_TOLERANCE),
        "the quantised graph",
    )


def _golden(
    imported: ImportedModel, config: CompileConfig, notes: list[str]
) -> tuple[GoldenVectors | None, str]:
    """A random input with its reference output, and who computed it; why not is in `notes`."""
    if not config.golden:
        return None, ""
    if any(size is None for shape in imported.output_shapes for size in shape):
        notes.append("no golden vectors: the shape of an output depends on the data")
        return None, ""
    try:
        reference = Reference(imported.reference, imported.reference_bytes(), threads=2)
        inputs = random_inputs(_signature(imported), index_bounds(imported.reference), config.seed)
        outputs = reference.run(inputs)
    except ModelError as error:
        notes.append(f"no golden vectors: {error}")
        return None, ""
    arrays = [outputs[name] for name in imported.output_names]
    return GoldenVectors(
        tuple(inputs.values()), tuple(arrays), reference.tolerance
    ), reference.label


def _prove(module: Module, golden: GoldenVectors | None) -> tuple[Difference, ...]:
    """The module's deviation from its golden vectors; raises VerificationError if too large."""
    if golden is None:
        return ()
    names = [tensor.name for tensor in module.manifest.outputs]
    expected = dict(zip(names, golden.outputs, strict=True))
    actual = dict(zip(names, module.run(golden.inputs), strict=True))
    differences = compare_all(actual, expected, golden.tolerance)
    wrong = [difference for difference in differences if not difference.agrees]
    if wrong:
        raise VerificationError(
            f"{module.path}: output {wrong[0].name} does not agree with the reference "
            f"({wrong[0].detail or f'off by {wrong[0].relative:.1e} of its range'}); "
            f"find the cause with: tinsmith verify {module.path} --model MODEL.onnx --bisect"
        )
    return differences


def _latency(module: Module, golden: GoldenVectors) -> dict[str, Any]:
    """Median latency of a fraction of a second of runs, as it goes into the manifest."""
    times: list[float] = []
    deadline = time.perf_counter() + _LATENCY_SECONDS
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 1000):
        begin = time.perf_counter()
        module.run(golden.inputs)
        times.append(time.perf_counter() - begin)
    return {
        "median_ms": statistics.median(times[1:]) * 1e3,
        "runs": len(times) - 1,
        "threads": module.threads,
        "cpu": cpu_name(),
    }


def _peak_memory() -> int:
    """Bytes: the largest resident size of this process so far, or of a tool it ran."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024
