"""One narrowing of a graph: channels scored, widths chosen, shrunk and recovered, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing
from tinsmith.compiler.evaluate.classes import Verdict
from tinsmith.compiler.pruning.allocation import Allocator, Graph
from tinsmith.compiler.pruning.config import AUTO, PruneConfig
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.compiler.pruning.reconstruction import LayerError
from tinsmith.compiler.pruning.recovery import Recovery
from tinsmith.compiler.pruning.report import StepReport
from tinsmith.compiler.pruning.scoring import Scoring
from tinsmith.compiler.pruning.views import viewed
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune import find_groups
from tinsmith.passes.prune.allocation.flops import flops_model
from tinsmith.passes.prune.allocation.parameters import parameter_model
from tinsmith.passes.prune.allocation.ranking import Ranking, rank
from tinsmith.passes.prune.recovery.distillation import DistillationResult
from tinsmith.passes.prune.recovery.positions import Positions, composed, positions_left
from tinsmith.passes.prune.schedule import progress_of_steps
from tinsmith.passes.prune.shrink import shrink
from tinsmith.passes.prune.streams import stream_weights
from tinsmith.targets.spec import TargetSpec

# Before the recovery of a step and after it; None where nothing judges.
Verdicts = tuple[Verdict | None, Verdict | None]

# Kernels for registers of fewer lanes compute two at a time.
_LEAST_LANES = 8


@dataclass(frozen=True)
class State(Graph):
    """A graph on its way: which positions of the whole graph's tensors it still has."""

    positions: Positions

    @property
    def flops(self) -> float:
        """Operations, see `flops_model`."""
        return flops_model(self.module, self.groups).total({})

    @property
    def params(self) -> float:
        """Elements of constants."""
        return parameter_model(self.groups).total({})

    @property
    def units(self) -> dict[int, int]:
        """The width of each group, by its index."""
        return {group.index: group.units for group in self.groups}


@dataclass(frozen=True)
class Narrowed:
    """What a narrowing left, and how it went; `rankings`, `widths` and `errors` of the last step.

    `verdicts` are those before and after the recovery of each step, which `steps` do not tell.
    `predicted` is the share of the latency that a table of latencies foretold.
    """

    state: State
    steps: tuple[StepReport, ...]
    verdicts: tuple[Verdicts, ...]
    rankings: tuple[Ranking, ...]
    widths: Mapping[int, int]
    errors: tuple[LayerError, ...]
    notes: tuple[str, ...] = ()
    predicted: float | None = None
    distillation: DistillationResult | None = None


class Narrowing:
    """Narrows `whole` as the options say, learning from `source` alone (None: from nothing).

    `held_out` are samples of the same data that nothing may learn from either. Widths by
    sensitivity go by `chooser`, which has its reference; `inputs` are what latency is measured on.
    """

    def __init__(
        self,
        config: PruneConfig,
        spec: TargetSpec,
        whole: State,
        source: CalibrationSource | None,
        chooser: Judge,
        inputs: Callable[[], Sequence[np.ndarray]],
        held_out: CalibrationSource | None,
        workshop: Workshop,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self._spec = spec
        self._whole = whole
        self._source = source
        self._workshop = workshop
        self._seed = seed
        self._progress = progress
        self._weights = self._stream_weights()
        self._allocator = Allocator(config, spec, whole, inputs, chooser, workshop, progress)
        self._recovery = Recovery(config, whole.module, source, workshop, seed, progress, held_out)

    def narrowed(self, judge: Judge | None = None) -> Narrowed:
        """The narrower graph; `judge` judges every step, before recovery and after it.

        Raises ConfigError for a goal that cannot be reached.
        """
        current = self._whole
        steps: list[StepReport] = []
        verdicts: list[Verdicts] = []
        for done in progress_of_steps(self._config.schedule, self._config.steps):
            rankings, notes = self.ranked(current)
            widths = self._allocator.widths(current, rankings, done)
            current, step, verdict, errors = self._step(
                current, rankings, widths, judge, last=done >= 1
            )
            steps.append(step)
            verdicts.append(verdict)
        return Narrowed(
            current,
            tuple(steps),
            tuple(verdicts),
            tuple(rankings),
            widths,
            errors,
            notes,
            self._allocator.predicted,
            self._recovery.distillation,
        )

    def ranked(self, current: State) -> tuple[list[Ranking], tuple[str, ...]]:
        """The groups that may get narrower, their units ranked, and notes; others keep theirs."""
        scores = self._scoring().scores(current.module, current.groups)
        alignment = self._config.alignment or max(self._spec.float_lanes, _LEAST_LANES)
        rankings = [
            rank(
                group,
                scores.of[group.index],
                alignment,
                scores.kind,
                self._whole.units[group.index],
                self._weights.get(group.index, 1.0),
            )
            for group in current.groups.prunable
            if group.name not in self._config.keep and self._weights.get(group.index, 1.0) > 0
        ]
        return rankings, scores.notes

    def _scoring(self) -> Scoring:
        seen = self._source
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

    def _stream_weights(self) -> dict[int, float]:
        """What residual streams weigh, by the index of their groups; others weigh 1."""
        found = stream_weights(self._whole.module, self._whole.groups)
        if self._config.residual == AUTO:
            return found
        return dict.fromkeys(found, float(self._config.residual))

    def _step(
        self,
        current: State,
        rankings: Sequence[Ranking],
        widths: Mapping[int, int],
        judge: Judge | None,
        last: bool,
    ) -> tuple[State, StepReport, Verdicts, tuple[LayerError, ...]]:
        """Shrink, recover, judge before and after."""
        keep = {r.group: r.kept(widths[r.group]) for r in rankings if widths[r.group] < r.units}
        positions = composed(
            current.positions, positions_left(current.module, current.groups, keep)
        )
        shrunk = shrink(current.module, keep)
        raw = judge.verdict(shrunk) if judge is not None else None
        module, errors = self._recovery.recovered(shrunk, positions, last)
        verdict = raw if module is shrunk or judge is None else judge.verdict(module)
        after = State(module, find_groups(module), positions)
        step = StepReport(
            channels=sum(after.units.values()) / sum(self._whole.units.values()),
            flops=after.flops / self._whole.flops,
            params=after.params / self._whole.params,
            layers_solved=sum(error.ridge is not None for error in errors),
        )
        return after, step, (raw, verdict), errors
