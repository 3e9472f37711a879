"""From a model to scheduled kernels with golden vectors: what comes before a module is built."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import tvm

from tinsmith.compiler import expected_results
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.dimensions.batching import DependentImagesError, batched
from tinsmith.compiler.dimensions.images import Images
from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.compiler.errors import ModelError, TargetError
from tinsmith.compiler.evaluate.inputs import random_inputs
from tinsmith.compiler.evaluate.reference import Reference
from tinsmith.compiler.frontends.frontend import ModelSource
from tinsmith.compiler.frontends.imported import ImportedModel
from tinsmith.compiler.frontends.origins import nodes_behind
from tinsmith.compiler.frontends.registry import import_model
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.write.build import Builds
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.pipeline import (
    QUANTIZED_BEFORE,
    PassRunner,
    Pipeline,
    PipelineReport,
    configured,
)
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.pruner import Pruner
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.quantization.config import QuantizationConfig
from tinsmith.compiler.quantization.quantizer import Quantized, Quantizer
from tinsmith.compiler.quantization.report import QuantizationReport
from tinsmith.compiler.workshop import Workshop, workshop
from tinsmith.passes.graph.fused_groups import computed_by_kernel
from tinsmith.passes.progress import Progress, within
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.registry import get_target
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.spec import TargetSpec, UnknownTargetError

_LOGGER = logging.getLogger(__name__)

# About where each phase begins, as a share of the whole: for the progress bar.
_BEGIN = {"import": 0.0, "lower": 0.1, "reference": 0.45, "build": 0.5, "prove": 0.95}
_BEGIN_PRUNING = {"import": 0.0, "prune": 0.02, "lower": 0.8, "reference": 0.85, "build": 0.88,
                  "prove": 0.98}  # fmt: skip
# The part of lowering that quantising takes.
_QUANTIZING = (0.05, 0.95)


@dataclass(frozen=True)
class Prepared:
    """A model whose kernels are scheduled, and what it is to be compared with.

    `pipeline.fused` are the kernels before they were scheduled. `golden` has a set of vectors,
    and of an open batch one for the smallest, a middle and the largest size. `reference` names
    what has computed them; it is empty, like `golden`, if there are none. `judge` settles
    what a module makes of them, where somebody else's implementation has computed them.
    `builds` are kernels of the module that were compiled on the way.
    `float_model` says how far the golden vectors of a quantised or pruned model are from the
    float model, see `tinsmith.compiler.evaluate.float_model`.
    """

    lowered: LoweredModel
    pipeline: PipelineReport
    golden: tuple[GoldenVectors, ...]
    reference: str
    notes: tuple[str, ...]
    quantization: QuantizationReport | None
    pruning: PruneReport | None
    judge: Reference | None = None
    builds: Builds = field(default_factory=Builds, compare=False)
    float_model: Mapping[str, dict[str, float | None]] | None = None


def prepare(
    model: ModelSource,
    config: CompileConfig,
    spec: TargetSpec,
    clock: Clock,
    records: RecordLookup | None,
    reported: bool = True,
    algorithms: AlgorithmLookup | None = None,
    host: Host | None = None,
) -> Prepared:
    """Import, prune, quantise and lower a model, and run its reference.

    `records` and `algorithms` are what earlier searches found; a configuration without
    Winograd's algorithm has the last word. Without `reported` nothing is found out about the
    accuracy of a quantised model. `host` runs graphs meanwhile; None finds it.

    Raises ModelError, PassError and ConfigError as `tinsmith.compile` does.
    """
    host = host or Host.at_hand()
    with clock.phase("import"):
        imported = import_model(model, config.shapes, config.constants, config.batch)
    here = None
    if config.pruning is not None or config.quantization is not None:
        here = workshop(config, spec, records, algorithms, model_name(imported.source), host)
    module, pruner = imported.module, None
    if here is not None and config.pruning is not None:
        with clock.phase("prune"):
            pruner = _pruner(config.pruning, imported, config, spec, here, clock)
            module = pruner(module)
    quantizer = None
    with clock.phase("lower"):
        if here is not None and config.quantization is not None:
            quantizer = _quantizer(
                config.quantization, imported, config, spec, here, clock, reported
            )
        steps = configured(config, spec, records, algorithms)
        pipeline, quantized = _lowered(module, steps, quantizer, config, clock)
    for step in pipeline.passes:
        _LOGGER.debug("pass %s: %.3f s", step.name, step.seconds)
    notes = [*imported.notes, *pipeline.notes]
    nodes = nodes_behind(computed_by_kernel(pipeline.module), imported.node_names)
    scheduled, batch = _with_open_batch(imported, pipeline, nodes, notes)
    lowered = LoweredModel(
        module=scheduled,
        spec=spec,
        input_names=imported.input_names,
        output_names=imported.output_names,
        kernels=pipeline.kernels,
        source_name=model_name(imported.source),
        notes=tuple(notes),
        passes=tuple((timing.name, timing.seconds) for timing in pipeline.passes),
        config=config.to_dict(),
        nodes=nodes,
        batch=batch,
    )
    judge = promise = None
    with clock.phase("reference"):
        if quantizer is not None and quantized is not None:
            notes += quantizer.source.notes
            same = expected_results.same_bits(pipeline, spec, host, final=reported)
            golden, reference = expected_results.of_quantized(quantized.sample, config, same)
        elif pruner is not None:
            # The model computes something else; what pruning costs stands in its report.
            notes += pruner.source.notes if pruner.source is not None else ()
            inputs = tuple(pruner.first_sample().values())
            golden, reference = expected_results.of_graph(
                module, inputs, config, host, "the pruned graph"
            )
        elif imported.reference is None:
            inputs = tuple(
                random_inputs(imported.signature, imported.domains, config.seed).values()
            )
            golden, reference = expected_results.of_graph(
                module, inputs, config, host, "the graph read"
            )
        else:
            golden, judge = expected_results.of_reference(
                imported, imported.reference, config, notes
            )
            reference = "" if judge is None else judge.label
        sets = expected_results.at_sizes(imported, golden, batch, judge, notes)
        if reported and golden is not None and (quantizer is not None or pruner is not None):
            promise = expected_results.distance_to_float(imported, golden, notes)
    return Prepared(
        lowered,
        pipeline,
        sets,
        reference,
        tuple(notes),
        None if quantized is None else quantized.report,
        None if pruner is None else pruner.report,
        judge,
        Builds() if here is None else here.builds,
        promise,
    )


def _with_open_batch(
    imported: ImportedModel,
    pipeline: PipelineReport,
    nodes: Mapping[str, Sequence[str]],
    notes: list[str],
) -> tuple[tvm.IRModule, OpenBatch | None]:
    """The scheduled module, which of an open batch computes any part, and how it does.

    Raises ModelError for an operator that computes an entry of the batch from others.
    """
    axes = imported.open_axes
    if axes is None:
        return pipeline.module, None
    inputs = [
        Images.of_axis(shape, axes.axes[name], axes.high) if name in axes.axes else None
        for name, shape in zip(imported.input_names, imported.input_shapes, strict=True)
    ]
    try:
        found = batched(pipeline.fused, pipeline.module, inputs, axes.high)
    except DependentImagesError as error:
        behind = ", ".join(nodes.get(error.kernel, ())) or error.kernel
        raise ModelError(
            f"{imported.source}: {axes.name} cannot be a range: what node {behind} computes may "
            "depend on more than one entry of the batch; give it one size"
        ) from error
    if found.whole:
        behind = ", ".join(dict.fromkeys(n for k in found.whole for n in nodes.get(k) or (k,)))
        notes.append(f"computed for {axes.high} entries whatever {axes.name} is: {behind}")
    return found.module, OpenBatch(
        axes.name, axes.low, axes.high, found.inputs, found.outputs, found.overrun
    )


def _lowered(
    module: tvm.IRModule,
    pipeline: Pipeline,
    quantizer: Quantizer | None,
    config: CompileConfig,
    clock: Clock,
) -> tuple[PipelineReport, Quantized | None]:
    """What the pipeline makes of a module, with the passes that quantise it, if that is asked."""
    runner = PassRunner(config.dump)
    begin, end = _QUANTIZING if quantizer is not None else (0.5, 0.5)
    on_graph, later = pipeline.until(QUANTIZED_BEFORE), pipeline.since(QUANTIZED_BEFORE)
    show = within(clock.shown("lower"), 0.0, begin)
    graph = on_graph.run(module, progress=show, runner=runner).module
    quantized = None
    if quantizer is not None:
        quantized = quantizer(graph)
        later = later.with_steps(quantized.steps, before=QUANTIZED_BEFORE)
    show = within(clock.shown("lower"), end, 1.0)
    return later.run(graph, progress=show, runner=runner), quantized


def target_of(config: CompileConfig) -> TargetSpec:
    """The target of a configuration, with as many cores as threads are asked for.

    Raises TargetError for a target that is not known.
    """
    spec = target_named(config.target)
    return replace(spec, cores=config.threads) if config.threads else spec


def target_named(name: str) -> TargetSpec:
    """The target of that name; raises TargetError for one that is not known."""
    try:
        return get_target(name)
    except UnknownTargetError as error:
        raise TargetError(str(error)) from error


class Clock:
    """Times the phases and tells the progress callback when one begins."""

    def __init__(self, progress: Progress | None, pruning: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._begin = _BEGIN_PRUNING if pruning else _BEGIN

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.show(name, 0.0)
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        _LOGGER.info("%s: %.2f s", name, self.seconds[name])

    def shown(self, name: str) -> Progress:
        """The progress of that phase."""
        return lambda step, share: self.show(name, share, step)

    def show(self, name: str, share_of_phase: float, step: str = "") -> None:
        if self._progress is not None:
            names = list(self._begin)
            later = names[names.index(name) + 1 :]
            begin, end = self._begin[name], self._begin[later[0]] if later else 1.0
            self._progress(step or name, begin + (end - begin) * share_of_phase)


def model_name(source: str) -> str:
    """The name of a model's file without its folder and ending, or that of a model in memory."""
    return Path(source).stem or "model"


def _quantizer(
    options: QuantizationConfig,
    imported: ImportedModel,
    config: CompileConfig,
    spec: TargetSpec,
    here: Workshop,
    clock: Clock,
    reported: bool,
) -> Quantizer:
    """What quantises the graph."""
    described = zip(imported.output_names, imported.output_shapes, strict=True)
    open_outputs = [name for name, shape in described if None in shape]
    if open_outputs:
        raise ModelError(
            f"{imported.source}: the shape of output {open_outputs[0]!r} depends on data, and a "
            "quantised model cannot be compared with it; cut the model before that output, or "
            "compile it without --quantize"
        )
    return Quantizer(
        options,
        spec,
        imported.signature,
        imported.domains,
        here,
        config.seed,
        progress=within(clock.shown("lower"), *_QUANTIZING),
        reported=reported,
    )


def _pruner(
    options: PruneConfig,
    imported: ImportedModel,
    config: CompileConfig,
    spec: TargetSpec,
    here: Workshop,
    clock: Clock,
) -> Pruner:
    """What prunes the imported graph."""
    return Pruner(
        options,
        spec,
        imported.signature,
        imported.domains,
        here,
        config.seed,
        progress=clock.shown("prune"),
    )
