"""A quantised graph beside the float graph: what each layer and the outputs lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, ObservedModule
from tinsmith.compiler.quantization.noise import SignalToNoise
from tinsmith.compiler.quantization.outputs import OutputNoise, class_output
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.progress import Progress

# Samples that are compared; more make the figures of a layer no surer.
_COMPARED = 32


@dataclass(frozen=True)
class Sample:
    """One input of the model and what the quantised graph computes from it."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Comparison:
    """How far a quantised graph is from the float graph over `samples` samples.

    `layers` has the noise of each compared tensor by name, `output` that of the output that lost
    most; `agreement` is the share of samples of the same class (None without an output that
    chooses one, see `outputs.class_output`).
    """

    layers: Mapping[str, SignalToNoise]
    output: SignalToNoise
    agreement: float | None
    samples: int


def compare_graphs(
    exact: tvm.IRModule,
    quantized: tvm.IRModule,
    tensors: Sequence[str],
    observed: Sequence[str],
    source: CalibrationSource,
    workshop: Workshop,
    progress: Progress | None = None,
) -> Comparison:
    """Run both graphs on samples of `source`; `tensors` that one of them lacks are left out.

    `exact` is run with all of `observed`: it has been compiled with these before.
    """
    before, after = Dataflow(exact), Dataflow(quantized)
    names = [n for n in tensors if before.named(n) is not None and after.named(n) is not None]
    noise = {name: SignalToNoise() for name in names}
    output, classes, same, count = OutputNoise(), class_output(exact), 0.0, 0
    with (
        ObservedModule(exact, workshop, [*dict.fromkeys([*observed, *names])]) as float_run,
        ObservedModule(quantized, workshop, names) as integer_run,
    ):
        for sample in source:
            if count == _COMPARED:
                break
            if progress is not None:
                progress("compare with float", count / _COMPARED)
            inputs = list(sample.values())
            wanted, found = float_run.run(inputs), integer_run.run(inputs)
            for name in names:
                noise[name].update(wanted.tensors[name], found.tensors[name])
            output.update(wanted.outputs, found.outputs)
            if classes is not None:
                right, given = (classes.chosen(run.outputs) for run in (wanted, found))
                same += float((right == given).mean())
            count += 1
    return Comparison(noise, output.worst, same / count if classes and count else None, count)
