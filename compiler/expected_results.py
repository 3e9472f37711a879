"""Golden vectors of a model that is being prepared: who computes them, how near to come."""

from __future__ import annotations

from functools import partial

import numpy as np
import tvm
from tvm import tirx

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.dimensions.images import first_images
from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.compare import QUANTIZED_TOLERANCE
from tinsmith.compiler.evaluate.float_model import measure
from tinsmith.compiler.evaluate.inputs import random_inputs
from tinsmith.compiler.evaluate.reference import Reference, ReferenceMaker
from tinsmith.compiler.evaluate.stages import run_stage
from tinsmith.compiler.frontends.imported import ImportedModel
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.pipeline import PipelineReport
from tinsmith.compiler.quantization.comparison import Sample
from tinsmith.targets.registry import backend_of
from tinsmith.targets.spec import TargetSpec


def of_graph(
    module: tvm.IRModule,
    inputs: tuple[np.ndarray, ...],
    config: CompileConfig,
    host: Host,
    label: str,
) -> tuple[GoldenVectors | None, str]:
    """Inputs with the outputs of a graph that no other runtime has: TVM's own definitions."""
    if not config.golden:
        return None, ""
    outputs = run_stage(module, inputs, host.spec)
    return GoldenVectors(inputs, tuple(outputs)), label


def of_quantized(
    sample: Sample, config: CompileConfig, same_bits: bool
) -> tuple[GoldenVectors | None, str]:
    """A calibration sample with the quantised graph's own outputs, as this machine computes them.

    A float reference would not tell a broken kernel from rounding; what rounding costs stands
    in the quantisation report.
    """
    if not config.golden:
        return None, ""
    return (
        GoldenVectors(sample.inputs, sample.outputs, 0.0 if same_bits else QUANTIZED_TOLERANCE),
        "the quantised graph",
    )


def of_reference(
    imported: ImportedModel, make: ReferenceMaker, config: CompileConfig, notes: list[str]
) -> tuple[GoldenVectors | None, Reference | None]:
    """A random input with its reference output, and who computed it; why not is in `notes`."""
    if not config.golden:
        return None, None
    if "bfloat16" in (*imported.input_dtypes, *imported.output_dtypes):
        # They travel as bits, which no other runtime takes.
        notes.append("no golden vectors: an input or output is bfloat16; compare results yourself")
        return None, None
    try:
        reference = make(threads=2)
        inputs = random_inputs(imported.signature, imported.domains, config.seed)
        outputs = reference.run(inputs)
    except ModelError as error:
        notes.append(f"no golden vectors: {error}")
        return None, None
    notes += reference.notes
    arrays = [outputs[name] for name in imported.output_names]
    tolerance = reference.tolerance(*imported.output_dtypes)
    return GoldenVectors(tuple(inputs.values()), tuple(arrays), tolerance), reference


def at_sizes(
    imported: ImportedModel,
    golden: GoldenVectors | None,
    batch: OpenBatch | None,
    judge: Reference | None,
    notes: list[str],
) -> tuple[GoldenVectors, ...]:
    """The golden vectors, of an open batch at the smallest, a middle and the largest size.

    Where another runtime has computed them, it computes each size; else a smaller batch is a part
    of the largest, as has been shown of the graph.
    """
    axes = imported.open_axes
    if golden is None or batch is None or axes is None:
        return () if golden is None else (golden,)
    sets = []
    for size in axes.sizes:
        inputs = tuple(map(partial(first_images, count=size), golden.inputs, batch.inputs))
        outputs = tuple(map(partial(first_images, count=size), golden.outputs, batch.outputs))
        if judge is not None and imported.reference is not None and size != axes.high:
            try:
                other = imported.reference(threads=2, size=size)
                computed = other.run(dict(zip(imported.input_names, inputs, strict=True)))
                outputs = tuple(computed[name] for name in imported.output_names)
            except ModelError as error:
                notes.append(f"no golden vectors for {axes.name} {size}: {error}")
                continue
        sets.append(GoldenVectors(inputs, outputs, golden.tolerance, (size,)))
    return tuple(sets)


def same_bits(pipeline: PipelineReport, spec: TargetSpec, host: Host, final: bool) -> bool:
    """Whether the module must compute its golden vectors to the last bit.

    Kernels of integers do everywhere. Others do where the vectors were computed by the very
    kernels of the module: by kernels for this machine, unless they are `final` no more.
    """
    if final and host.makes(spec):
        return True
    kernels = pipeline.fused.functions.values()
    backend = backend_of(spec)
    return all(backend.is_reproducible(f) for f in kernels if isinstance(f, tirx.PrimFunc))


def distance_to_float(
    imported: ImportedModel, golden: GoldenVectors, notes: list[str]
) -> dict[str, dict[str, float | None]] | None:
    """How far the golden outputs are from the float model's; `notes` say why it is not known."""
    if imported.reference is None:
        return None
    inputs = dict(zip(imported.input_names, golden.inputs, strict=True))
    actual = dict(zip(imported.output_names, golden.outputs, strict=True))
    try:
        expected = imported.reference(threads=2).run(inputs)
    except ModelError as error:
        notes.append(f"not compared with the float model on the golden input: {error}")
        return None
    return measure(actual, expected)
