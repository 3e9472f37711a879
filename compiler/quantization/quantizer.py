"""Calibrates a graph and answers the passes that quantise it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from compiler.calibration import (
    CalibrationSource,
    ObservedModule,
    Preprocessing,
    observe_tensors,
    open_calibration,
)
from compiler.errors import ModelError
from compiler.pipeline import Step, number_formats, quantization_passes
from compiler.quantization.config import QuantizationConfig
from compiler.quantization.report import LayerReport, QuantizationReport, SignalToNoise
from passes.quantize.bias_correction import ChannelMeanObserver, CorrectBias, operand_tensors
from passes.quantize.cross_layer_equalization import CrossLayerEqualization, equalizable_tensors
from passes.quantize.dataflow import Dataflow, Node
from passes.quantize.insert_quantization import QuantizationOptions
from passes.quantize.observers import ChannelMinMaxObserver, Observer, observer_factory
from passes.quantize.placement import Placement, place
from targets.registry import get_target
from targets.spec import TargetSpec

Progress = Callable[[str, float], None]

# Samples for comparing the quantised model with the float one.
_COMPARED = 32
# Channels below this share of the largest range are equalised as if they had it: less lets
# channels that are rarely active saturate (MobileNetV2 loses a point of agreement at 0.05).
_EQUALIZATION_FLOOR = 0.3


@dataclass(frozen=True)
class Sample:
    """One input of the model and what the quantised graph computes from it."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


class _ValuesAndChannels:
    """Two observers of one tensor: of its range, and of the mean of each channel."""

    def __init__(self, values: Observer) -> None:
        self.values = values
        self.channels = ChannelMeanObserver()

    def update(self, array: np.ndarray) -> None:
        self.values.update(array)
        self.channels.update(array)


class Quantizer:
    """Callable for `compiler.pipeline.lower`: graph in, passes out.

    After the call, `report` says what was done and `sample` holds an input with the
    quantised graph's own outputs. Calibration runs on this machine, whatever the target.
    """

    def __init__(
        self,
        config: QuantizationConfig,
        spec: TargetSpec,
        signature: Mapping[str, tuple[tuple[int, ...], str]],
        bounds: Mapping[str, int],
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Raises ConfigError and InputError for calibration data that cannot be used."""
        self._config = config
        self._spec = spec
        self._progress = progress
        self.source: CalibrationSource = open_calibration(
            config.calibration,
            signature,
            preprocessing=Preprocessing(
                config.mean, config.std, config.pixel_range, config.layout, config.resize
            ),
            limit=config.samples,
            bounds=bounds,
            seed=seed,
        )
        self.report: QuantizationReport | None = None
        self.sample: Sample | None = None

    def __call__(self, module: tvm.IRModule) -> Sequence[Step]:
        """The passes that quantise `module`, a graph after the graph passes.

        Raises ModelError if nothing in it can be quantised.
        """
        table = number_formats(self._spec)
        options = QuantizationOptions(keep_float=frozenset(self._config.keep_float))
        placement = place(module, table, options.keep_float)
        if not placement.integer_operators:
            raise ModelError(
                "nothing to quantise: the model has no convolution or matrix product with "
                "constant weights that could be computed in integers; compile it without --quantize"
            )
        steps: list[Step] = []
        graph = module
        if self._config.equalize:
            step = self._equalization(graph)
            steps.append(("equalize", step))
            graph = step(graph)
        stored = place(graph, table, options.keep_float)
        seen = self._observe(graph, stored, options)
        observed = {name: seen[name].values.range() for name in stored.observed}
        if self._config.correct_bias:
            axes = operand_tensors(graph, table, options.keep_float)
            means = {
                name: both.channels.means for name, both in seen.items() if axes.get(name) == -1
            }
            steps.append(("correct_bias", CorrectBias(means, table, options)))
        inserted = quantization_passes(self._spec, observed, options)
        steps += inserted
        quantized = module
        for _, step in steps:
            quantized = step(quantized)
        self._compare(graph, quantized, placement, observed)
        return steps

    def _equalization(self, graph: tvm.IRModule) -> tvm.transform.Pass:
        names = equalizable_tensors(graph)
        found = self._observers(graph, names, ChannelMinMaxObserver)
        ranges = {}
        for name, seen in found.items():
            low, high = seen.ranges()
            ranges[name] = np.maximum(np.abs(low), np.abs(high))
        return CrossLayerEqualization(ranges, _EQUALIZATION_FLOOR)

    def _observe(
        self, graph: tvm.IRModule, placement: Placement, options: QuantizationOptions
    ) -> dict[str, _ValuesAndChannels]:
        """Ranges and channel means in one pass over the samples."""
        operands = operand_tensors(graph, number_formats(self._spec), options.keep_float)
        names = dict.fromkeys([*placement.observed, *operands])
        factory = observer_factory(self._config.observer)
        return self._observers(graph, list(names), lambda: _ValuesAndChannels(factory()))

    def _observers(
        self, graph: tvm.IRModule, names: Sequence[str], factory: Callable[[], Any]
    ) -> dict[str, Any]:
        if not names:
            return {}
        return observe_tensors(
            graph, get_target("native"), names, self.source, factory, progress=self._progress
        )

    def _compare(
        self,
        exact: tvm.IRModule,
        quantized: tvm.IRModule,
        placement: Placement,
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        """Run both graphs on samples and write the report."""
        native = get_target("native")
        known, before = Dataflow(quantized), Dataflow(exact)
        names = [
            name
            for name in placement.integer_operators
            if known.named(name) is not None and before.named(name) is not None
        ]
        noise = {name: SignalToNoise() for name in names}
        output, same, count = SignalToNoise(), 0, 0
        scores = False
        with (
            ObservedModule(exact, native, names) as float_run,
            ObservedModule(quantized, native, names) as integer_run,
        ):
            for sample in self.source:
                if count == _COMPARED:
                    break
                if self._progress is not None:
                    self._progress("compare with float", count / _COMPARED)
                inputs = list(sample.values())
                wanted, found = float_run.run(inputs), integer_run.run(inputs)
                for name in names:
                    noise[name].update(wanted.tensors[name], found.tensors[name])
                output.update(wanted.outputs[0], found.outputs[0])
                scores = wanted.outputs[0].ndim == 2 and wanted.outputs[0].shape[1] > 1
                if scores:
                    same += int(wanted.outputs[0].argmax() == found.outputs[0].argmax())
                count += 1
        # A run of its own: observing a tensor ends a fused kernel, and a multiply-add that is not
        # fused may round to the neighbouring code.
        with ObservedModule(quantized, native, []) as alone:
            inputs = [np.array(value) for value in next(iter(self.source)).values()]
            outputs = tuple(np.array(value) for value in alone.run(inputs).outputs)
        self.sample = Sample(tuple(inputs), outputs)
        layers = []
        for name in placement.integer_operators:
            node, seen = before.named(name), noise.get(name)
            low, high = _stored_range(node, ranges)
            layers.append(
                LayerReport(
                    name,
                    (node.operator if node is not None else None) or "operator",
                    "integer",
                    low=low,
                    high=high,
                    sqnr_db=seen.decibels if seen is not None else None,
                    cosine=seen.cosine if seen is not None else None,
                )
            )
        layers += [
            LayerReport(kept.name, kept.operator, "float", kept.reason)
            for kept in placement.float_operators
        ]
        self.report = QuantizationReport(
            self._config.format,
            self.source.label,
            count,
            tuple(layers),
            output.decibels,
            output.cosine,
            same / count if scores and count else None,
            self._config.to_dict(),
        )


def _stored_range(
    node: Node | None, ranges: Mapping[str, tuple[float, float]]
) -> tuple[float | None, float | None]:
    """The range of what is stored of an operator's result, behind its bias and activation."""
    while node is not None:
        if node.name in ranges:
            return ranges[node.name]
        node = node.readers[0] if len(node.readers) == 1 else None
    return None, None
