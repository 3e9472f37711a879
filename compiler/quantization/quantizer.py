"""Calibrates a graph by the recipe of its format and answers the passes that quantise it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import tvm

from compiler.calibration import CalibrationSource, Preprocessing, open_calibration
from compiler.pipeline import Step
from compiler.quantization.comparison import Comparison, Sample, compare_graphs
from compiler.quantization.config import CALIBRATED, WEIGHT_FORMATS, QuantizationConfig
from compiler.quantization.floats import FloatRecipe
from compiler.quantization.integers import IntegerRecipe
from compiler.quantization.recipe import Prepared, Recipe, Task
from compiler.quantization.report import LayerReport, QuantizationReport
from compiler.quantization.speed import Speed, measured
from compiler.quantization.timing import local_spec
from compiler.quantization.weights import WeightRecipe
from compiler.quantization.workbench import Workbench
from targets.registry import get_target
from targets.spec import TargetSpec

Progress = Callable[[str, float], None]

RECIPES: Mapping[str, type[Recipe]] = {
    "int8": IntegerRecipe,
    "bf16": FloatRecipe,
    "fp16": FloatRecipe,
    **dict.fromkeys(WEIGHT_FORMATS, WeightRecipe),
}


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
        threads: int = 0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """`threads` run what is timed, 0: one for each core.

        Raises ConfigError and InputError for calibration data that cannot be used.
        """
        self._config = config
        self._spec = spec
        self._name = name
        self._threads = threads
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
            required=config.format in CALIBRATED,
        )
        self.report: QuantizationReport | None = None
        self.sample: Sample | None = None

    def __call__(self, module: tvm.IRModule) -> Sequence[Step]:
        """The passes that quantise `module`, a graph after the graph passes.

        Raises ModelError if nothing in it can be quantised.
        """
        task = Task(self._config, self._spec, self.source, self._progress)
        prepared = RECIPES[self._config.format]().prepare(module, task)
        local = local_spec(self._spec)
        self._show("compile float and quantised", 0.5)
        with Workbench(
            module, self.source, local or get_target("native"), self._threads, self._name
        ) as bench:
            candidate = bench.candidate(prepared)
            speed = None
            if local is not None:
                self._show("time the layers", 0.7)
                speed = measured(bench, candidate, self._config.fallback)
                candidate = speed.candidate
            self.sample = bench.sample(candidate)
            sizes = bench.exact.size_bytes, candidate.module.size_bytes
        prepared = candidate.prepared
        comparison = compare_graphs(
            prepared.exact,
            candidate.quantized,
            [layer.tensor for layer in prepared.layers if layer.tensor],
            prepared.observed,
            self.source,
            self._progress,
        )
        self.report = self._reported(prepared, comparison, speed, sizes)
        return prepared.steps

    def _show(self, phase: str, share: float) -> None:
        if self._progress is not None:
            self._progress(phase, share)

    def _reported(
        self,
        prepared: Prepared,
        comparison: Comparison,
        speed: Speed | None,
        sizes: tuple[int, int],
    ) -> QuantizationReport:
        layers = []
        for layer in prepared.layers:
            seen = comparison.layers.get(layer.tensor)
            if seen is not None:
                layer = replace(layer, sqnr_db=seen.decibels, cosine=seen.cosine)
            layers.append(layer if speed is None else _timed(layer, speed))
        unmeasured = "latency not measured: the module is for another machine"
        return QuantizationReport(
            format=self._config.format,
            source=self.source.label,
            samples=comparison.samples,
            layers=tuple(layers),
            output_sqnr_db=comparison.output.decibels,
            output_cosine=comparison.output.cosine,
            agreement=comparison.agreement,
            float_bytes=sizes[0],
            bytes=sizes[1],
            float_seconds=speed.exact.total if speed else None,
            seconds=speed.own.total if speed else None,
            notes=speed.notes if speed else (unmeasured,),
            options=self._config.to_dict(),
        )


def _timed(layer: LayerReport, speed: Speed) -> LayerReport:
    """The layer with its times, and the reason if it is these that keep it in float."""
    layer = replace(
        layer,
        float_seconds=speed.exact.layers.get(layer.name),
        seconds=speed.own.layers.get(layer.name),
    )
    if layer.name not in speed.returned or speed.tried is None:
        return layer
    before = speed.tried.layers.get(layer.name)
    return replace(layer, reason="slower in integers", integer_seconds=before)
