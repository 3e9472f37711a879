"""Makes a graph smaller: scores its channels, chooses widths, shrinks it and lets it recover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, RandomSource
from tinsmith.compiler.calibration.folds import interval
from tinsmith.compiler.calibration.plausibility import warnings
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.evaluate.classes import Verdict, pooled
from tinsmith.compiler.evaluate.inputs import Domains, random_inputs
from tinsmith.compiler.pipeline import PRUNED_BEFORE, Pipeline, graph_passes
from tinsmith.compiler.pruning import notes
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.compiler.pruning.latency_table import latencies
from tinsmith.compiler.pruning.narrowing import Narrowed, Narrowing, State, Verdicts
from tinsmith.compiler.pruning.report import GroupReport, PruneReport
from tinsmith.compiler.pruning.samples import open_samples
from tinsmith.compiler.pruning.sensitivity import RATIOS, Sensitivity, measure_sensitivity
from tinsmith.compiler.pruning.sparsity import NO_FASTER, TIMED_BEFORE, sparsified
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune import Groups, find_groups
from tinsmith.passes.prune.allocation.ranking import Ranking
from tinsmith.targets.spec import TargetSpec

Signature = Mapping[str, tuple[tuple[int, ...], str]]

NOT_TIMED = "latency not measured: the module is for another machine"


def readable(module: tvm.IRModule) -> tvm.IRModule:
    """An imported module in canonical form, its layouts and batch normalisations as they were.

    Layer normalisations that an exporter spelled out are operators: only as such can the
    channels that they run over be removed.
    """
    return Pipeline(graph_passes()).until(PRUNED_BEFORE).run(module).module


class Pruner:
    """Callable on an imported module; answers a smaller one, still before the graph passes.

    After the call, `report` says what was done. Samples run on this machine, whatever the target.
    """

    def __init__(
        self,
        config: PruneConfig,
        spec: TargetSpec,
        signature: Signature,
        bounds: Domains,
        workshop: Workshop,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Raises ConfigError and InputError for data that cannot be used."""
        self._config = config
        self._spec = spec
        self._signature = signature
        self._bounds = bounds
        self._workshop = workshop
        self._seed = seed
        self._progress = progress
        samples = open_samples(config, signature, bounds, seed)
        self.source: CalibrationSource | None = samples.learn
        self._samples = samples
        self._judge = Judge(samples.judging, workshop, progress)
        self._chooser = self._judge
        if samples.choosing is not samples.judging:
            self._chooser = Judge(samples.choosing, workshop, progress)
        self.report: PruneReport | None = None

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        """The pruned module.

        Channels go first, then single weights. Raises ModelError if there is nothing to prune,
        and ConfigError for a goal that cannot be reached (naming the least that can) and for
        names of groups that there are not.
        """
        module = readable(module)
        whole = State(module, find_groups(module), {})
        if self._config.removes_channels:
            self._check(whole.groups)
        reference = self._judge.set_reference(module)
        if self._config.removes_channels:
            module, report = self._narrowed(whole, reference)
        else:
            report = self._untouched(whole, reference)
        if self._config.sparsity is not None:
            module, layers = sparsified(module, self._config.sparsity)
            told = (*report.notes, NO_FASTER)
            if self._config.removes_channels:
                told = (*told, TIMED_BEFORE)
            else:
                report = replace(report, **_quality(self._judge.verdict(module)))
            report = replace(report, sparse_layers=layers, notes=told)
        self.report = report
        return module

    def _narrowed(
        self, whole: State, reference: Verdict | None
    ) -> tuple[tvm.IRModule, PruneReport]:
        """Step by step without the channels that the goal does not leave."""
        if self._config.allocation == "sensitivity" and self._chooser is not self._judge:
            self._chooser.set_reference(whole.module)
        folds = self._samples.folds if reference is not None else ()
        if folds:
            judged = [self._judged_fold(whole, number) for number in range(len(folds))]
            found = self._narrowing(whole, self.source).narrowed()
        else:
            found = self._narrowing(whole, self.source, self._samples.held_out).narrowed(
                self._judge
            )
            judged = [self._verdicts(found, self._judge)]
        *verdicts, (_, verdict) = [
            (pooled(before), pooled(after))
            for before, after in (zip(*step, strict=True) for step in zip(*judged, strict=True))
        ]
        steps = tuple(
            replace(
                step,
                shrunk_agreement=before.agreement if before else None,
                shrunk_top1=before.top1 if before else None,
                **_quality(after),
            )
            for step, (before, after) in zip(found.steps, verdicts, strict=True)
        )
        current = found.state
        reasons = notes.why_whole(whole.groups, found.rankings, current.units, self._config.keep)
        seconds = self._latencies(whole.module, current.module)
        report = PruneReport(
            goal=f"{self._config.goal_name} {self._config.goal:g}",
            criterion=self._config.chosen_criterion,
            recovery=self._config.chosen_recovery,
            groups=_described(whole, found, reasons),
            steps=steps,
            flops=(whole.flops, current.flops),
            params=(int(whole.params), int(current.params)),
            float_seconds=seconds[0] if seconds else None,
            seconds=seconds[1] if seconds else None,
            predicted_seconds=found.predicted * seconds[0]
            if found.predicted is not None and seconds
            else None,
            **_quality(verdict),
            float_top1=reference.top1 if reference else None,
            evaluated_on=self._judge.label if verdict else None,
            evaluated_samples=verdict.samples if verdict else 0,
            evaluated_folds=max(len(folds), 1) if verdict else 0,
            interval=interval(verdict.agreement, verdict.samples) if verdict else None,
            distillation=found.distillation,
            notes=(
                *self._data_warnings(),
                *self._judge.notes,
                *found.notes,
                *(() if seconds else (NOT_TIMED,)),
                *notes.of_data(self.source, verdict, len(folds)),
                *notes.of_layers(found.errors),
                *notes.of_groups(current.groups),
                *notes.of_nothing(reasons, whole.groups),
            ),
            options=self._config.to_dict(),
        )
        return current.module, report

    def _narrowing(
        self,
        whole: State,
        source: CalibrationSource | None,
        held_out: CalibrationSource | None = None,
        progress: Progress | None = None,
    ) -> Narrowing:
        return Narrowing(
            self._config,
            self._spec,
            whole,
            source,
            self._chooser,
            lambda: list(self.first_sample().values()),
            held_out,
            self._workshop,
            self._seed,
            progress or self._progress,
        )

    def _judged_fold(self, whole: State, number: int) -> tuple[Verdicts, ...]:
        """The verdicts on a narrowing that learns from one fold, by samples that it never sees."""
        fold, folds = self._samples.folds[number], len(self._samples.folds)

        def progress(phase: str, share: float) -> None:
            if self._progress is not None:
                self._progress(f"fold {number + 1} of {folds}: {phase}", share)

        judge = self._judge.on(fold.judge)
        return self._verdicts(
            self._narrowing(whole, fold.learn, progress=progress).narrowed(judge), judge
        )

    def _verdicts(self, found: Narrowed, judge: Judge) -> tuple[Verdicts, ...]:
        """Those on all steps, and at the end that on the module, its single weights zero."""
        final = found.verdicts[-1][1]
        if self._config.sparsity is not None and final is not None:
            final = judge.verdict(sparsified(found.state.module, self._config.sparsity)[0])
        return (*found.verdicts, (None, final))

    def _untouched(self, whole: State, reference: Verdict | None) -> PruneReport:
        """The report as long as nothing has gone, for weights of some sparsity alone."""
        told = []
        if reference is None and not self._judge.notes:
            told.append("agreement and accuracy were not measured: pass --calibration")
        elif isinstance(self.source, RandomSource):
            told.append("warning: agreement on random data says little")
        return PruneReport(
            goal=f"sparsity {self._config.sparsity}",
            criterion="magnitude",
            recovery="none",
            groups=(),
            steps=(),
            flops=(whole.flops, whole.flops),
            params=(int(whole.params), int(whole.params)),
            float_top1=reference.top1 if reference else None,
            evaluated_on=self._judge.label if reference else None,
            evaluated_samples=reference.samples if reference else 0,
            notes=(*self._data_warnings(), *self._judge.notes, *told),
            options=self._config.to_dict(),
        )

    def sensitivity(self, module: tvm.IRModule, ratios: Sequence[float] = RATIOS) -> Sensitivity:
        """How much each group of an imported module matters alone; nothing else is done.

        Raises ModelError if there is nothing to prune, ConfigError if there is nothing to judge by.
        """
        module = readable(module)
        whole = State(module, find_groups(module), {})
        self._check(whole.groups)
        evaluation = self._samples.judging
        judge = self._judge if evaluation is None or evaluation.held_out else self._chooser
        judge.set_reference(module)
        rankings, _ = self._narrowing(whole, self.source).ranked(whole)
        return measure_sensitivity(module, whole.groups, rankings, judge, ratios, self._progress)

    def _check(self, groups: Groups) -> None:
        if not groups.prunable:
            reasons = dict.fromkeys(f"{group.name} {group.frozen}" for group in groups)
            told = "; ".join([*reasons][:3]) or "there is no convolution or matrix product"
            raise ModelError(f"nothing to prune: {told}")
        known = {group.name for group in groups}
        for name in self._config.keep:
            if name not in known:
                listed = ", ".join(group.name for group in groups.prunable[:4])
                raise ConfigError(f"--keep-group {name}: no such group; there are {listed}, ...")

    def _data_warnings(self) -> tuple[str, ...]:
        if self.source is None or isinstance(self.source, RandomSource):
            return ()
        return warnings(self.source)

    def _latencies(self, whole: tvm.IRModule, pruned: tvm.IRModule) -> tuple[float, float] | None:
        """Seconds before and after; None for another machine."""
        if not self._workshop.is_target:
            return None
        if self._progress is not None:
            self._progress("time before and after", 0.95)
        return latencies(whole, pruned, self._workshop, list(self.first_sample().values()))

    def first_sample(self) -> dict[str, np.ndarray]:
        """The first sample of the data, or a random one without."""
        if self.source is None:
            return random_inputs(self._signature, self._bounds, self._seed)
        return {name: np.array(value) for name, value in next(iter(self.source)).items()}


def _quality(verdict: Verdict | None) -> dict[str, Any]:
    """What reports tell of a verdict."""
    return {
        "agreement": verdict.agreement if verdict else None,
        "top1": verdict.top1 if verdict else None,
    }


def _importance_kept(ranking: Ranking, width: int) -> float:
    """The share of the loss of all units that is not lost."""
    everything = float(ranking.losses[-1])
    return 1.0 - ranking.loss(width) / everything if everything > 0 else 1.0


def _described(
    whole: State, found: Narrowed, reasons: Mapping[int, str]
) -> tuple[GroupReport, ...]:
    after = found.state.units
    importance = {r.group: _importance_kept(r, found.widths[r.group]) for r in found.rankings}
    return tuple(
        GroupReport(
            group.name,
            group.units,
            after[group.index],
            importance.get(group.index),
            reasons.get(group.index, ""),
        )
        for group in whole.groups
    )
