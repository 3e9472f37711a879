"""Calibrates a graph by the recipe of its format and answers the passes that quantise it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import tvm

from compiler.calibration import CalibrationSource, Preprocessing, open_calibration
from compiler.pipeline import Step
from compiler.quantization.comparison import Comparison, Sample, compare_graphs, quantized_sample
from compiler.quantization.config import QuantizationConfig
from compiler.quantization.integers import IntegerRecipe
from compiler.quantization.recipe import Prepared, Recipe, Task
from compiler.quantization.report import QuantizationReport
from targets.spec import TargetSpec

Progress = Callable[[str, float], None]

RECIPES: Mapping[str, type[Recipe]] = {"int8": IntegerRecipe}


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
        name: str = "model",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Raises ConfigError and InputError for calibration data that cannot be used."""
        self._config = config
        self._spec = spec
        self._name = name
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
        task = Task(self._config, self._spec, self.source, self._progress)
        prepared = RECIPES[self._config.format]().prepare(module, task)
        quantized = module
        for _, step in prepared.steps:
            quantized = step(quantized)
        comparison = compare_graphs(
            prepared.exact,
            quantized,
            [layer.tensor for layer in prepared.layers if layer.tensor],
            prepared.observed,
            self.source,
            self._progress,
        )
        self.sample = quantized_sample(quantized, self.source, self._name)
        self.report = self._reported(prepared, comparison)
        return prepared.steps

    def _reported(self, prepared: Prepared, comparison: Comparison) -> QuantizationReport:
        layers = []
        for layer in prepared.layers:
            seen = comparison.layers.get(layer.tensor)
            if seen is not None:
                layer = replace(layer, sqnr_db=seen.decibels, cosine=seen.cosine)
            layers.append(layer)
        return QuantizationReport(
            self._config.format,
            self.source.label,
            comparison.samples,
            tuple(layers),
            comparison.output.decibels,
            comparison.output.cosine,
            comparison.agreement,
            self._config.to_dict(),
        )
