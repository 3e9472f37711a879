"""Channels scaled before calibration: what can be, and whether it pays, found on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.calibration import ObservedModule, observe_tensors
from tinsmith.compiler.pipeline import Step
from tinsmith.compiler.quantization.config import AUTO
from tinsmith.compiler.quantization.outputs import OutputNoise
from tinsmith.compiler.quantization.recipe import Prepared, Task, after
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import constant_array
from tinsmith.passes.quantize.cross_layer_equalization import (
    CrossLayerEqualization,
    equalizable_tensors,
)
from tinsmith.passes.quantize.observers import ChannelMinMaxObserver
from tinsmith.passes.quantize.smooth_quant import SmoothQuant, smoothable_tensors

Scaling = tuple[Step, ...]

# Channels below this share of the largest range are equalised as if they had it: less lets
# channels that are rarely active saturate (MobileNetV2 loses a point of agreement at 0.05).
_EQUALIZATION_FLOOR = 0.3
# Samples on which ways of scaling are compared.
_COMPARED = 64


def scalings(graph: tvm.IRModule, task: Task) -> tuple[Scaling, ...]:
    """The passes that may scale channels of `graph` before calibration, calibrated themselves.

    Several ways where an option is left to the data: `equalize` in networks with depthwise
    convolutions, which it helps or harms (others are equalised), `smooth` where products
    read what a layer normalisation made and nothing else does.
    """
    equalize, smooth = task.config.equalize, task.config.smooth
    first = [True] if equalize == AUTO and not _has_depthwise(graph) else _choices(equalize)
    found: list[Scaling] = []
    for equalized in first if equalizable_tensors(graph) else [False]:
        steps: Scaling = ()
        scaled = graph
        if equalized:
            steps = (Step("equalize", _equalization(graph, task)),)
            scaled = after(steps, graph)
        for smoothed in _choices(smooth) if smoothable_tensors(scaled) else [False]:
            smoothing = (Step("smooth", _smoothing(scaled, task)),) if smoothed else ()
            found.append((*steps, *smoothing))
    return tuple(found)


def most_exact(
    graph: tvm.IRModule, prepared: Sequence[Prepared], names: Sequence[str], task: Task
) -> tuple[int, str]:
    """Which of several ways of quantising `graph` keeps its output best, and a line saying so.

    `names` tell the ways apart. They are run on samples of the calibration data.
    """
    noise = [OutputNoise() for _ in prepared]
    with ExitStack() as modules:
        exact = modules.enter_context(ObservedModule(graph, task.workshop))
        tried = [
            modules.enter_context(ObservedModule(way.quantized(graph), task.workshop))
            for way in prepared
        ]
        for count, sample in enumerate(task.source):
            if count == _COMPARED:
                break
            if task.progress is not None:
                task.progress("compare ways of scaling channels", count / _COMPARED)
            inputs = list(sample.values())
            wanted = exact.run(inputs).outputs
            for module, seen in zip(tried, noise, strict=True):
                seen.update(wanted, module.run(inputs).outputs)
    found = [seen.worst.decibels for seen in noise]
    best = max(range(len(prepared)), key=found.__getitem__)
    told = ", ".join(f"{n} {s:.1f} dB" for n, s in zip(names, found, strict=True))
    return best, f"channels scaled before quantising: {names[best]} is best of {told}"


def scaling_name(scaling: Scaling) -> str:
    """`equalize`, `equalize + smooth`, or `none`."""
    return " + ".join(name for name, _ in scaling) or "none"


def _choices(option: bool | str) -> list[bool]:
    return [False, True] if option == AUTO else [bool(option)]


def _has_depthwise(graph: tvm.IRModule) -> bool:
    for node in Dataflow(graph).nodes:
        if node.operator == "relax.nn.conv2d":
            call: Any = node.value
            weights = constant_array(call.args[1])
            if weights is not None and int(call.attrs.groups) == weights.shape[-1] > 1:
                return True
    return False


def _equalization(graph: tvm.IRModule, task: Task) -> tvm.transform.Pass:
    ranges = _magnitudes(graph, equalizable_tensors(graph), task)
    step: tvm.transform.Pass = CrossLayerEqualization(ranges, _EQUALIZATION_FLOOR)
    return step


def _smoothing(graph: tvm.IRModule, task: Task) -> tvm.transform.Pass:
    step: tvm.transform.Pass = SmoothQuant(_magnitudes(graph, smoothable_tensors(graph), task))
    return step


def _magnitudes(graph: tvm.IRModule, names: Sequence[str], task: Task) -> dict[str, np.ndarray]:
    """The largest magnitude of each channel of the tensors of these names."""
    found: Mapping[str, Any] = observe_tensors(
        graph,
        task.workshop,
        names,
        task.source,
        ChannelMinMaxObserver,
        progress=task.progress,
    )
    return {
        name: np.maximum(*(np.abs(bound) for bound in seen.ranges()))
        for name, seen in found.items()
    }
