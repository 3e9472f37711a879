"""`int8`: weights and activations in integers, computed in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm

from compiler.calibration import observe_tensors
from compiler.errors import ModelError
from compiler.pipeline import Step, number_formats, quantization_passes
from compiler.quantization.recipe import Prepared, Recipe, Task
from compiler.quantization.report import LayerReport
from passes.quantize.bias_correction import ChannelMeanObserver, CorrectBias, operand_tensors
from passes.quantize.cross_layer_equalization import CrossLayerEqualization, equalizable_tensors
from passes.quantize.dataflow import Dataflow, Node
from passes.quantize.insert_quantization import QuantizationOptions
from passes.quantize.observers import ChannelMinMaxObserver, Observer, observer_factory
from passes.quantize.placement import Placement, place
from targets.registry import get_target

# Channels below this share of the largest range are equalised as if they had it: less lets
# channels that are rarely active saturate (MobileNetV2 loses a point of agreement at 0.05).
_EQUALIZATION_FLOOR = 0.3


class _ValuesAndChannels:
    """Two observers of one tensor: of its range, and of the mean of each channel."""

    def __init__(self, values: Observer) -> None:
        self.values = values
        self.channels = ChannelMeanObserver()

    def update(self, array: np.ndarray) -> None:
        self.values.update(array)
        self.channels.update(array)


class IntegerRecipe(Recipe):
    """Equalises, calibrates ranges, corrects biases and stores tensors in integers."""

    def prepare(self, graph: tvm.IRModule, task: Task) -> Prepared:
        table = number_formats(task.spec)
        options = QuantizationOptions(keep_float=frozenset(task.config.keep_float))
        placement = place(graph, table, options.keep_float)
        if not placement.integer_operators:
            raise ModelError(
                "nothing to quantise: the model has no convolution or matrix product with "
                "constant weights that could be computed in integers; compile it without --quantize"
            )
        steps: list[Step] = []
        if task.config.equalize:
            step = _equalization(graph, task)
            steps.append(("equalize", step))
            graph = step(graph)
        placement = place(graph, table, options.keep_float)
        results = _results(graph, placement)
        axes = operand_tensors(graph, table, options.keep_float)
        observed = tuple(dict.fromkeys([*placement.observed, *axes, *results.values()]))
        factory = observer_factory(task.config.observer)
        seen = _observers(graph, observed, lambda: _ValuesAndChannels(factory()), task)
        ranges = {name: seen[name].values.range() for name in placement.observed}
        if task.config.correct_bias:
            means = {
                name: both.channels.means for name, both in seen.items() if axes.get(name) == -1
            }
            steps.append(("correct_bias", CorrectBias(means, table, options)))
        steps += quantization_passes(task.spec, ranges, options)
        layers = _layers(graph, placement, results, ranges)
        return Prepared(tuple(steps), graph, observed, layers)


def _equalization(graph: tvm.IRModule, task: Task) -> tvm.transform.Pass:
    names = equalizable_tensors(graph)
    found = _observers(graph, names, ChannelMinMaxObserver, task)
    ranges = {}
    for name, seen in found.items():
        low, high = seen.ranges()
        ranges[name] = np.maximum(np.abs(low), np.abs(high))
    return CrossLayerEqualization(ranges, _EQUALIZATION_FLOOR)


def _observers(
    graph: tvm.IRModule, names: Sequence[str], factory: Callable[[], Any], task: Task
) -> dict[str, Any]:
    if not names:
        return {}
    return observe_tensors(
        graph, get_target("native"), names, task.source, factory, progress=task.progress
    )


def _results(graph: tvm.IRModule, placement: Placement) -> dict[str, str]:
    """By integer operator, the tensor that is its result behind bias, residual and activation."""
    known = Dataflow(graph)
    results = {}
    for name in placement.integer_operators:
        node = known.named(name)
        if node is not None:
            results[name] = _stored_behind(node, placement).name
    return results


def _stored_behind(node: Node, placement: Placement) -> Node:
    """The first stored tensor from `node` on, or the last before the graph branches or ends."""
    while node.name not in placement.stored and len(node.readers) == 1:
        node = node.readers[0]
    return node


def _layers(
    graph: tvm.IRModule,
    placement: Placement,
    results: Mapping[str, str],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[LayerReport, ...]:
    known = Dataflow(graph)
    layers = []
    for name, tensor in results.items():
        node = known.named(name)
        operator = (node.operator if node is not None else None) or "operator"
        stored = placement.stored.get(tensor)
        low, high = ranges.get(stored.source, (None, None)) if stored else (None, None)
        layers.append(LayerReport(name, operator, "integer", tensor=tensor, low=low, high=high))
    return (
        *layers,
        *(LayerReport(k.name, k.operator, "float", k.reason) for k in placement.float_operators),
    )
