"""Makes a graph smaller: scores its channels, chooses widths, shrinks it and lets it recover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing, RandomSource
from tinsmith.compiler.calibration.plausibility import warnings
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.evaluate.classes import Verdict
from tinsmith.compiler.evaluate.inputs import Domains, random_inputs
from tinsmith.compiler.pipeline import PRUNED_BEFORE, Pipeline, graph_passes
from tinsmith.compiler.pruning import notes
from tinsmith.compiler.pruning.allocation import Allocator, Graph
from tinsmith.compiler.pruning.config import AUTO, PruneConfig
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.compiler.pruning.latency_table import latencies
from tinsmith.compiler.pruning.reconstruction import LayerError
from tinsmith.compiler.pruning.recovery import Recovery
from tinsmith.compiler.pruning.report import GroupReport, PruneReport, StepReport
from tinsmith.compiler.pruning.samples import open_samples
from tinsmith.compiler.pruning.scoring import Scores, Scoring
from tinsmith.compiler.pruning.sensitivity import RATIOS, Sensitivity, measure_sensitivity
from tinsmith.compiler.pruning.sparsity import NO_FASTER, TIMED_BEFORE, sparsified
from tinsmith.compiler.pruning.views import viewed
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune import Groups, find_groups
from tinsmith.passes.prune.allocation.flops import flops_model
from tinsmith.passes.prune.allocation.parameters import parameter_model
from tinsmith.passes.prune.allocation.ranking import Ranking, rank
from tinsmith.passes.prune.recovery.positions import Positions, composed, positions_left
from tinsmith.passes.prune.schedule import progress_of_steps
from tinsmith.passes.prune.shrink import shrink
from tinsmith.passes.prune.streams import stream_weights
from tinsmith.targets.spec import TargetSpec

Signature = Mapping[str, tuple[tuple[int, ...], str]]

# Kernels for registers of fewer lanes compute two at a time.
_LEAST_LANES = 8
NOT_TIMED = "latency not measured: the module is for another machine"


def readable(module: tvm.IRModule) -> tvm.IRModule:
    """An imported module in canonical form, its layouts and batch normalisations as they were.

    Layer normalisations that an exporter spelled out are operators: only as such can the
    channels that they run over be removed.
    """
    return Pipeline(graph_passes()).until(PRUNED_BEFORE).run(module).module


@dataclass(frozen=True)
class _State(Graph):
    """A graph on its way: which positions of the whole graph's tensors it still has."""

    positions: Positions

    @property
    def flops(self) -> float:
        return flops_model(self.module, self.groups).total({})

    @property
    def params(self) -> float:
        return parameter_model(self.groups).total({})

    @property
    def units(self) -> dict[int, int]:
        return {group.index: group.units for group in self.groups}


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
        whole = _State(module, find_groups(module), {})
        if self._config.removes_channels:
            self._check(whole.groups)
        reference = self._judge.set_reference(module)
        if self._config.removes_channels:
            module, report = self._narrowed(whole, reference)
        else:
            report = self._untouched(whole, reference)
        if self._config.sparsity is not None:
            module, layers = sparsified(module, self._config.sparsity)
            verdict = self._judge.verdict(module)
            timed = (TIMED_BEFORE,) if self._config.removes_channels else ()
            report = replace(
                report,
                sparse_layers=layers,
                agreement=verdict.agreement if verdict else None,
                top1=verdict.top1 if verdict else None,
                notes=(*report.notes, NO_FASTER, *timed),
            )
        self.report = report
        return module

    def _narrowed(
        self, whole: _State, reference: Verdict | None
    ) -> tuple[tvm.IRModule, PruneReport]:
        """Step by step without the channels that the goal does not leave."""
        module, current = whole.module, whole
        if self._config.allocation == "sensitivity" and self._chooser is not self._judge:
            self._chooser.set_reference(module)
        allocator = Allocator(
            self._config,
            self._spec,
            whole,
            lambda: list(self.first_sample().values()),
            self._chooser,
            self._workshop,
            self._progress,
        )
        recovery = Recovery(
            self._config,
            module,
            self.source,
            self._workshop,
            self._seed,
            self._progress,
            self._samples.held_out,
        )
        scoring = self._scoring()
        steps: list[StepReport] = []
        weights = self._stream_weights(whole)
        for done in progress_of_steps(self._config.schedule, self._config.steps):
            scores = scoring.scores(current.module, current.groups)
            rankings = self._rankings(whole, current, scores, weights)
            widths = allocator.widths(current, rankings, done)
            importance = {r.group: _importance_kept(r, widths[r.group]) for r in rankings}
            current, step, verdict, errors = self._step(
                whole, current, rankings, widths, recovery, last=done >= 1
            )
            steps.append(step)
        reasons = notes.why_whole(whole.groups, rankings, current.units, self._config.keep)
        seconds = self._latencies(whole.module, current.module)
        report = PruneReport(
            goal=f"{self._config.goal_name} {self._config.goal:g}",
            criterion=self._config.chosen_criterion,
            recovery=self._config.chosen_recovery,
            groups=_described(whole, current, importance, reasons),
            steps=tuple(steps),
            flops=(whole.flops, current.flops),
            params=(int(whole.params), int(current.params)),
            float_seconds=seconds[0] if seconds else None,
            seconds=seconds[1] if seconds else None,
            predicted_seconds=allocator.predicted * seconds[0]
            if allocator.predicted is not None and seconds
            else None,
            agreement=verdict.agreement if verdict else None,
            top1=verdict.top1 if verdict else None,
            float_top1=reference.top1 if reference else None,
            evaluated_on=self._judge.label if verdict else None,
            evaluated_samples=verdict.samples if verdict else 0,
            distillation=recovery.distillation,
            notes=(
                *self._data_warnings(),
                *self._judge.notes,
                *scores.notes,
                *(() if seconds else (NOT_TIMED,)),
                *notes.of_data(self.source, verdict),
                *notes.of_layers(errors),
                *notes.of_groups(current.groups),
                *notes.of_nothing(reasons, whole.groups),
            ),
            options=self._config.to_dict(),
        )
        return current.module, report

    def _untouched(self, whole: _State, reference: Verdict | None) -> PruneReport:
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
        whole = _State(module, find_groups(module), {})
        self._check(whole.groups)
        evaluation = self._samples.judging
        judge = self._judge if evaluation is None or evaluation.held_out else self._chooser
        judge.set_reference(module)
        scores = self._scoring().scores(module, whole.groups)
        rankings = self._rankings(whole, whole, scores, {})
        return measure_sensitivity(module, whole.groups, rankings, judge, ratios, self._progress)

    def _scoring(self) -> Scoring:
        seen = self.source
        if seen is not None and self._config.chosen_criterion == "reconstruction":
            # Few samples say less than they could of which channels stand for others.
            seen, _ = viewed(seen, Preprocessing.of(self._config))
        return Scoring(
            self._config.chosen_criterion,
            self._config.normalization,
            self._workshop,
            seen,
            self._seed,
            self._progress,
        )

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

    def _stream_weights(self, whole: _State) -> dict[int, float]:
        """What residual streams weigh, by the index of their groups; others weigh 1."""
        found = stream_weights(whole.module, whole.groups)
        if self._config.residual == AUTO:
            return found
        return dict.fromkeys(found, float(self._config.residual))

    def _data_warnings(self) -> tuple[str, ...]:
        if self.source is None or isinstance(self.source, RandomSource):
            return ()
        return warnings(self.source)

    def _rankings(
        self,
        whole: _State,
        current: _State,
        scores: Scores,
        weights: Mapping[int, float],
    ) -> list[Ranking]:
        """Of the groups that may get narrower; whatever else is fixed keeps its width."""
        alignment = self._config.alignment or max(self._spec.float_lanes, _LEAST_LANES)
        return [
            rank(
                group,
                scores.of[group.index],
                alignment,
                scores.kind,
                whole.units[group.index],
                weights.get(group.index, 1.0),
            )
            for group in current.groups.prunable
            if group.name not in self._config.keep and weights.get(group.index, 1.0) > 0
        ]

    def _step(
        self,
        whole: _State,
        current: _State,
        rankings: Sequence[Ranking],
        widths: Mapping[int, int],
        recovery: Recovery,
        last: bool,
    ) -> tuple[_State, StepReport, Verdict | None, tuple[LayerError, ...]]:
        """Shrink, recover, judge before and after."""
        keep = {r.group: r.kept(widths[r.group]) for r in rankings if widths[r.group] < r.units}
        positions = composed(
            current.positions, positions_left(current.module, current.groups, keep)
        )
        shrunk = shrink(current.module, keep)
        raw = self._judge.verdict(shrunk)
        module, errors = recovery.recovered(shrunk, positions, last)
        verdict = raw if module is shrunk else self._judge.verdict(module)
        after = _State(module, find_groups(module), positions)
        report = StepReport(
            channels=sum(after.units.values()) / sum(whole.units.values()),
            flops=after.flops / whole.flops,
            params=after.params / whole.params,
            shrunk_agreement=raw.agreement if raw else None,
            shrunk_top1=raw.top1 if raw else None,
            agreement=verdict.agreement if verdict else None,
            top1=verdict.top1 if verdict else None,
            layers_solved=sum(error.ridge is not None for error in errors),
        )
        return after, report, verdict, errors

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


def _importance_kept(ranking: Ranking, width: int) -> float:
    """The share of the loss of all units that is not lost."""
    everything = float(ranking.losses[-1])
    return 1.0 - ranking.loss(width) / everything if everything > 0 else 1.0


def _described(
    whole: _State,
    current: _State,
    importance: Mapping[int, float],
    reasons: Mapping[int, str],
) -> tuple[GroupReport, ...]:
    after = current.units
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
