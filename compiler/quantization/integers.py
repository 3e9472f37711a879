"""`int8`: weights and activations in integers, computed in integers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.calibration import observe_tensors
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.pipeline import Step, quantization_passes
from tinsmith.compiler.quantization.recipe import (
    Mixture,
    Prepared,
    Recipe,
    Task,
    after,
    known_layers,
)
from tinsmith.compiler.quantization.report import LayerReport
from tinsmith.compiler.quantization.scaling import Scaling, most_exact, scaling_name, scalings
from tinsmith.compiler.quantization.weights import gram_batches, is_grouped, layer_grams
from tinsmith.passes.graph.dataflow import Dataflow, stored_behind
from tinsmith.passes.quantize.adaptive_rounding import adaptively_rounded
from tinsmith.passes.quantize.bias_correction import (
    ChannelMeanObserver,
    CorrectBias,
    operand_tensors,
)
from tinsmith.passes.quantize.compress_weights import products
from tinsmith.passes.quantize.insert_quantization import (
    QuantizationOptions,
    weight_range,
    weight_scales,
)
from tinsmith.passes.quantize.observers import Observer, observer_factory
from tinsmith.passes.quantize.placement import Placement, place
from tinsmith.passes.quantize.precision_placement import place_precision
from tinsmith.passes.quantize.probe_quantization import ProbeQuantization, probed_operators
from tinsmith.passes.quantize.reduce_precision import ReducePrecision
from tinsmith.targets.number_formats import NumberFormats, float_precisions
from tinsmith.targets.registry import backend_of


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
        table = backend_of(task.spec).formats
        keep_float = known_layers(graph, task.config.keep_float, table.integer_operators)
        placement = place(graph, table, keep_float)
        if not placement.integer_operators:
            raise ModelError(
                "nothing to quantise: the model has no convolution or matrix product with "
                "constant weights that could be computed in integers; compile it without --quantize"
            )
        ways = scalings(graph, task)
        calibrated = [_calibrated(graph, way, task, keep_float) for way in ways]
        if len(calibrated) == 1:
            return _rounded(calibrated[0]).keeping({})
        prepared = [found.keeping({}) for found in calibrated]
        names = [scaling_name(way) for way in ways]
        best, told = most_exact(graph, prepared, names, task)
        return _rounded(replace(calibrated[best], notes=(told,))).keeping({})


def _calibrated(
    graph: tvm.IRModule, scaling: Scaling, task: Task, keep_float: Collection[str]
) -> _Calibrated:
    """Ranges and means of the graph with its channels scaled."""
    graph = after(scaling, graph)
    table = backend_of(task.spec).formats
    placement = place(graph, table, keep_float)
    axes = operand_tensors(graph, table, keep_float)
    results = _results(graph, placement)
    observed = tuple(dict.fromkeys([*placement.observed, *axes, *results.values()]))
    factory = observer_factory(task.config.observer)
    seen = _observers(graph, observed, lambda: _ValuesAndChannels(factory()), task)
    means = {name: both.channels.means for name, both in seen.items() if axes.get(name) == -1}
    return _Calibrated(
        task=task,
        keep_float=frozenset(keep_float),
        first=scaling,
        exact=graph,
        observed=observed,
        results=results,
        ranges={name: seen[name].values.range() for name in placement.observed},
        means=means if task.config.correct_bias else None,
    )


def _rounded(found: _Calibrated) -> _Calibrated:
    """With codes of weights by least squares, if they are asked for; grouped ones stay nearest."""
    task = found.task
    if task.config.rounding == "nearest":
        return found
    table = backend_of(task.spec).formats
    options = QuantizationOptions(keep_float=found.keep_float)
    levels = weight_range(options, table)
    integer = set(place(found.exact, table, found.keep_float).integer_operators)
    chosen = [
        product
        for product in products(found.exact, found.keep_float, 0)
        if product.name in integer and not is_grouped(product.call)
    ]
    codes = {}
    for batch in gram_batches(chosen):
        for name, gram in layer_grams(found.exact, batch, task).items():
            weights = next(product.weights for product in batch if product.name == name)
            scales = weight_scales(weights, levels, options.per_channel)
            codes[name] = adaptively_rounded(weights, scales, levels, gram)
    return replace(found, codes=codes)


@dataclass(frozen=True)
class _Calibrated(Mixture):
    """What calibration found; enough for any choice of layers."""

    task: Task
    keep_float: frozenset[str]
    first: tuple[Step, ...]
    exact: tvm.IRModule
    observed: tuple[str, ...]
    results: Mapping[str, str]
    ranges: Mapping[str, tuple[float, float]]
    means: Mapping[str, np.ndarray] | None
    notes: tuple[str, ...] = ()
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[str, ...]:
        """bfloat16 where the target has it, and this machine, to try it, too."""
        for spec in (self.task.spec, self.task.workshop.spec):
            if "bfloat16" not in float_precisions(spec):
                return ("float",)
        return ("bfloat16", "float")

    def keeping(self, kept: Mapping[str, str]) -> Prepared:
        table = backend_of(self.task.spec).formats
        keep_float = self.keep_float | set(kept)
        reduced = [name for name, precision in kept.items() if precision == "bfloat16"]
        reduced = list(place_precision(self.exact, reduced).operators)
        options = QuantizationOptions(keep_float=keep_float, weight_codes=self.codes)
        steps = list(self.first)
        if self.means is not None:
            steps.append(Step("correct_bias", CorrectBias(self.means, table, options)))
        steps += quantization_passes(self.task.spec, self.ranges, options)
        if reduced:
            steps.append(Step("reduce_precision", ReducePrecision("bfloat16", only=reduced)))
        layers = self._layers(place(self.exact, table, keep_float), table, reduced)
        return Prepared(tuple(steps), self.exact, self.observed, layers, self, self.notes)

    def probe(self) -> tuple[tuple[str, ...], tvm.IRModule]:
        table = backend_of(self.task.spec).formats
        options = QuantizationOptions(keep_float=self.keep_float)
        step: tvm.transform.Pass = ProbeQuantization(self.ranges, table, options, self.means)
        return probed_operators(self.exact, table, options), step(self.exact)

    def _layers(
        self, placement: Placement, table: NumberFormats, reduced: Collection[str]
    ) -> tuple[LayerReport, ...]:
        operators = {node.name: str(node.operator) for node in Dataflow(self.exact).nodes}
        layers = []
        for name in placement.integer_operators:
            tensor = self.results[name]
            stored = placement.stored.get(tensor)
            low, high = self.ranges.get(stored.source, (None, None)) if stored else (None, None)
            layers.append(
                LayerReport(
                    name,
                    operators[name],
                    "integer",
                    tensor=tensor,
                    weight_bits=table.weight_bits,
                    activation_bits=8,
                    low=low,
                    high=high,
                )
            )
        for left in placement.float_operators:
            tensor = self.results.get(left.name, "")
            layer = LayerReport(left.name, left.operator, "float", left.reason, tensor)
            if left.name in reduced:
                layer = replace(layer, computes="bfloat16", weight_bits=16, activation_bits=16)
            layers.append(layer)
        position = {name: index for index, name in enumerate(operators)}
        return tuple(sorted(layers, key=lambda layer: position[layer.name]))


def _observers(
    graph: tvm.IRModule, names: Sequence[str], factory: Callable[[], Any], task: Task
) -> dict[str, Any]:
    if not names:
        return {}
    return observe_tensors(
        graph, task.workshop, names, task.source, factory, progress=task.progress
    )


def _results(graph: tvm.IRModule, placement: Placement) -> dict[str, str]:
    """By integer operator, the tensor that is its result behind bias, residual and activation."""
    known = Dataflow(graph)
    results = {}
    for name in placement.integer_operators:
        node = known.named(name)
        if node is not None:
            results[name] = stored_behind(node, placement.stored).name
    return results
