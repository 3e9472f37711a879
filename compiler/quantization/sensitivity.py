"""Which layers cost most at the model's output, and how many of them must stay in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, ObservedModule
from tinsmith.compiler.quantization.outputs import OutputNoise
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress

# Samples over which the noise of each layer is summed; the order of layers settles early.
_SAMPLES = 16


def sensitivities(
    probe: tvm.IRModule,
    names: Sequence[str],
    source: CalibrationSource,
    workshop: Workshop,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Noise power over signal power with only that layer quantised, at the output it hurts most.

    `probe` comes from `tinsmith.passes.quantize.probe_quantization`, with a switch behind the
    model's inputs for each of `names`: one compilation, and a run for each layer and sample.
    """
    noise = {name: OutputNoise() for name in names}
    off = np.zeros((len(names), 1, 1), np.float32)
    with ObservedModule(probe, workshop) as module:
        for index, sample in enumerate(source):
            if index == _SAMPLES:
                break
            inputs = list(sample.values())
            exact = [array.copy() for array in module.run([*inputs, *off[:, 0]]).outputs]
            for position, name in enumerate(names):
                if progress is not None:
                    done = index + position / len(names)
                    progress("sensitivity of each layer", done / (source.count or _SAMPLES))
                switches = list(off[:, 0])
                switches[position] = np.ones(1, np.float32)
                noise[name].update(exact, module.run([*inputs, *switches]).outputs)
    return {name: 10 ** (-seen.worst.decibels / 10) for name, seen in noise.items()}


def fewest(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest k for which `holds(k)`, knowing that k = 0 fails and `count` does not.

    Doubles k until it holds, then bisects: few layers are expected. `holds` need not be
    monotone; the answer is a k for which it was true, or `count`.
    """
    low, high = 0, 1
    while high < count and not holds(high):
        low, high = high, high * 2
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
