"""Calibrates a graph by the recipe of its format and answers the passes that quantise it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import tvm

from tinsmith.compiler.calibration import (
    CalibrationSource,
    Folds,
    Preprocessing,
    RandomSource,
    folds,
    open_calibration,
)
from tinsmith.compiler.calibration.folds import told_of_samples
from tinsmith.compiler.calibration.plausibility import warnings
from tinsmith.compiler.evaluate.classes import SEEN, Bounds, Verdict, open_evaluation
from tinsmith.compiler.evaluate.inputs import Domains
from tinsmith.compiler.pipeline import Step
from tinsmith.compiler.quantization.accuracy import Accuracy, AccuracyKeeper
from tinsmith.compiler.quantization.comparison import Comparison, Sample, compare_graphs
from tinsmith.compiler.quantization.config import CALIBRATED, WEIGHT_FORMATS, QuantizationConfig
from tinsmith.compiler.quantization.floats import FloatRecipe
from tinsmith.compiler.quantization.integers import IntegerRecipe
from tinsmith.compiler.quantization.recipe import Recipe, Task
from tinsmith.compiler.quantization.report import LayerReport, QuantizationReport
from tinsmith.compiler.quantization.speed import Speed, measured
from tinsmith.compiler.quantization.weights import WeightRecipe
from tinsmith.compiler.quantization.workbench import Candidate, Workbench
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow, model_name
from tinsmith.passes.progress import Progress
from tinsmith.targets.spec import TargetSpec

RECIPES: Mapping[str, type[Recipe]] = {
    "int8": IntegerRecipe,
    "bf16": FloatRecipe,
    "fp16": FloatRecipe,
    **dict.fromkeys(WEIGHT_FORMATS, WeightRecipe),
}


@dataclass(frozen=True)
class Quantized:
    """What quantising a graph comes to.

    `steps` are the passes that do it, before the step `QUANTIZED_BEFORE` of the pipeline. `sample`
    is an input with the quantised graph's own outputs, `report` says what was done, if that is
    asked for.
    """

    steps: tuple[Step, ...]
    sample: Sample
    report: QuantizationReport | None = None


class Quantizer:
    """Callable on a graph after the graph passes, float; answers the passes that quantise it.

    Calibration runs in the workshop, on this machine, whatever the target.
    """

    def __init__(
        self,
        config: QuantizationConfig,
        spec: TargetSpec,
        signature: Mapping[str, tuple[tuple[int, ...], str]],
        bounds: Domains,
        workshop: Workshop,
        seed: int = 0,
        progress: Progress | None = None,
        reported: bool = True,
    ) -> None:
        """Without `reported` there will be no report, which takes two compilations and a run
        on many samples.

        Raises ConfigError and InputError for calibration data that cannot be used.
        """
        self._config = config
        self._spec = spec
        self._workshop = workshop
        self._progress = progress
        self._reports = reported
        source = open_calibration(
            config.calibration,
            signature,
            preprocessing=Preprocessing.of(config),
            limit=config.samples,
            bounds=bounds,
            seed=seed,
            required=config.format in CALIBRATED,
        )
        is_split = config.learns and config.evaluation is None
        split = folds(source) if is_split else Folds(source, source, not config.learns)
        self.source: CalibrationSource = split.learn
        self._evaluation = open_evaluation(config, signature, split, bounds, seed)
        # What figures are of: samples that no range was calibrated on, if there are any.
        self._judge, self._unseen = split.judge, split.unseen
        if self._evaluation is not None and config.evaluation is not None:
            self._judge, self._unseen = self._evaluation.source, True
        self._bounds = Bounds(config.min_agreement, config.max_drop)

    def __call__(self, module: tvm.IRModule) -> Quantized:
        """Calibrate `module`, and choose by accuracy and time what stays in float.

        Raises ModelError if nothing in it can be quantised, or if it answers no scores where
        these are to be compared.
        """
        if self._evaluation is not None:
            self._evaluation.check(module)
        task = Task(self._config, self._spec, self.source, self._workshop, self._progress)
        prepared = RECIPES[self._config.format]().prepare(module, task)
        self._show("compile float and quantised", 0.5)
        with Workbench(module, self.source, self._workshop) as bench:
            outcome = self._chosen(bench, bench.candidate(prepared), self._workshop.is_target)
            sample = bench.sample(outcome.candidate)
        prepared = outcome.candidate.prepared
        report = None
        if self._reports:
            comparison = compare_graphs(
                prepared.exact,
                outcome.candidate.quantized,
                [layer.tensor for layer in prepared.layers if layer.tensor],
                prepared.observed,
                self._judge,
                self._workshop,
                self._progress,
            )
            report = self._reported(outcome, comparison)
        return Quantized(prepared.steps, sample, report)

    def _chosen(self, bench: Workbench, candidate: Candidate, timed: bool) -> _Outcome:
        """The candidate, or one with some layers in float for the sake of accuracy or speed."""
        keeper = accuracy = speed = None
        integer: dict[str, float] = {}
        if self._evaluation is not None:
            keeper = AccuracyKeeper(bench, self._evaluation, self._bounds, self._progress)
            accuracy = keeper.within_bounds(candidate, self.source)
            candidate = accuracy.candidate
        if timed:
            self._show("time the layers", 0.7)
            if accuracy is not None and accuracy.first is not None:
                integer |= bench.measure(accuracy.first)[1].layers
            accepts = keeper.accepts if keeper is not None else None
            speed = measured(bench, candidate, self._config.fallback, accepts)
            candidate = speed.candidate
            if speed.tried is not None:
                integer |= {name: speed.tried.layers[name] for name in speed.returned}
        return _Outcome(
            candidate,
            accuracy,
            keeper.verdict(candidate) if keeper is not None else None,
            speed,
            integer,
            (bench.exact.size_bytes, candidate.module.size_bytes),
        )

    def _show(self, phase: str, share: float) -> None:
        if self._progress is not None:
            self._progress(phase, share)

    def _reported(self, outcome: _Outcome, comparison: Comparison) -> QuantizationReport:
        layers = []
        graph = Dataflow(outcome.candidate.prepared.exact)
        origins = {node.name: model_name(node) for node in graph.nodes}
        for layer in outcome.candidate.prepared.layers:
            layer = replace(layer, origin=origins.get(layer.name, ""))
            seen = comparison.layers.get(layer.tensor)
            if seen is not None:
                layer = replace(layer, sqnr_db=seen.decibels, cosine=seen.cosine)
            layers.append(outcome.described(layer))
        verdict, speed = outcome.verdict, outcome.speed
        notes = outcome.candidate.prepared.notes
        if outcome.accuracy is not None:
            notes += outcome.accuracy.notes
        agreement = comparison.agreement if verdict is None else verdict.agreement
        notes += self._data_notes(agreement, verdict.samples if verdict else comparison.samples)
        if speed is None:
            notes = (*notes, "latency not measured: the module is for another machine")
        return QuantizationReport(
            format=self._config.format,
            source=self.source.label,
            samples=comparison.samples,
            layers=tuple(layers),
            output_sqnr_db=comparison.output.decibels,
            output_cosine=comparison.output.cosine,
            agreement=agreement,
            float_bytes=outcome.sizes[0],
            bytes=outcome.sizes[1],
            float_seconds=speed.exact.total if speed else None,
            seconds=speed.own.total if speed else None,
            evaluated_on=self._evaluation.source.label if self._evaluation else None,
            evaluated_samples=verdict.samples if verdict else 0,
            top1=verdict.top1 if verdict else None,
            float_top1=verdict.float_top1 if verdict else None,
            notes=(*notes, *speed.notes) if speed else notes,
            options=self._config.to_dict(),
        )

    def _data_notes(self, agreement: float | None, samples: int) -> tuple[str, ...]:
        """Whether the data make sense, and how much the figures rest on."""
        if isinstance(self.source, RandomSource):
            return ()
        notes = warnings(self.source)
        if not self._unseen:
            return notes if self._evaluation is not None else (*notes, SEEN)
        return notes if agreement is None else (*notes, told_of_samples(agreement, samples))


@dataclass(frozen=True)
class _Outcome:
    """What was chosen, and all that was found out on the way.

    `integer` has the seconds in integers of layers that do not compute so any more;
    `sizes` are the bytes of the float32 module and of the chosen one.
    """

    candidate: Candidate
    accuracy: Accuracy | None
    verdict: Verdict | None
    speed: Speed | None
    integer: Mapping[str, float]
    sizes: tuple[int, int]

    def described(self, layer: LayerReport) -> LayerReport:
        """The layer with its times, and why it computes in float if that was chosen here."""
        if self.speed is not None:
            layer = replace(
                layer,
                float_seconds=self.speed.exact.layers.get(layer.name),
                seconds=self.speed.own.layers.get(layer.name),
            )
        if layer.computes == "integer":
            return layer
        layer = replace(layer, integer_seconds=self.integer.get(layer.name))
        if self.speed is not None and layer.name in self.speed.returned:
            return replace(layer, reason="slower in integers")
        if self.accuracy is not None and layer.name in self.accuracy.kept:
            noise = self.accuracy.kept[layer.name]
            return replace(layer, reason="for accuracy", sensitivity=noise)
        return layer
