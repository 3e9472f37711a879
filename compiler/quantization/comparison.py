"""A quantised graph beside the float graph: what each layer and the outputs lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from compiler.calibration import CalibrationSource, ObservedModule
from compiler.quantization.noise import SignalToNoise
from passes.quantize.dataflow import Dataflow
from targets.registry import get_target

Progress = Callable[[str, float], None]

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

    `layers` has the noise of each compared tensor by name, `output` that of the first output of
    floats; `agreement` is the share of samples whose largest element of that is the same (None
    unless it is a row of scores).
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
    progress: Progress | None = None,
) -> Comparison:
    """Run both graphs on samples of `source`; `tensors` that one of them lacks are left out.

    `exact` is run with all of `observed`: it has been compiled with these before.
    """
    native = get_target("native")
    before, after = Dataflow(exact), Dataflow(quantized)
    names = [n for n in tensors if before.named(n) is not None and after.named(n) is not None]
    noise = {name: SignalToNoise() for name in names}
    output, same, count, scores = SignalToNoise(), 0, 0, False
    with (
        ObservedModule(exact, native, [*dict.fromkeys([*observed, *names])]) as float_run,
        ObservedModule(quantized, native, names) as integer_run,
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
            index = float_output(wanted.outputs)
            right, given = wanted.outputs[index], found.outputs[index]
            output.update(right, given)
            scores = right.ndim == 2 and right.shape[1] > 1
            if scores:
                same += int(right.argmax() == given.argmax())
            count += 1
    return Comparison(noise, output, same / count if scores and count else None, count)


def float_output(outputs: Sequence[np.ndarray]) -> int:
    """The position of the first output of floats, 0 if there is none: others are not rounded."""
    return next((i for i, array in enumerate(outputs) if array.dtype.kind == "f"), 0)
