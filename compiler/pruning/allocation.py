"""Widths by the rule and the goal that the options choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.compiler.pruning.latency_table import latencies, latency_model
from tinsmith.compiler.pruning.sensitivity import Sensitivity, measure_sensitivity
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.allocation.by_sensitivity import by_sensitivity
from tinsmith.passes.prune.allocation.cost import CostModel
from tinsmith.passes.prune.allocation.flops import flops_model
from tinsmith.passes.prune.allocation.global_threshold import below_threshold
from tinsmith.passes.prune.allocation.parameters import parameter_model
from tinsmith.passes.prune.allocation.ranking import Ranking
from tinsmith.passes.prune.allocation.under_budget import BudgetError, under_budget
from tinsmith.passes.prune.allocation.uniform import uniform
from tinsmith.passes.prune.groups import Groups
from tinsmith.passes.prune.shrink import shrink
from tinsmith.targets.spec import TargetSpec

# A measured latency this near to the goal will do; measuring again is no surer.
_NEAR = 0.02
_CORRECTIONS = 4


@dataclass(frozen=True)
class Graph:
    """A graph and its groups."""

    module: tvm.IRModule
    groups: Groups


class Allocator:
    """Chooses the widths of each step.

    `whole` is the unpruned graph, `inputs` are what latency is measured on. After `widths`,
    `predicted` is the latency over the unpruned one that the table of
    latencies foretells, if the goal is one, and `sensitivity` the curves, if they were measured.
    """

    def __init__(
        self,
        config: PruneConfig,
        spec: TargetSpec,
        whole: Graph,
        inputs: Callable[[], Sequence[np.ndarray]],
        judge: Judge,
        workshop: Workshop,
        progress: Progress | None = None,
    ) -> None:
        """Raises ConfigError for a goal in latency on another machine."""
        self._config = config
        self._whole = whole
        self._inputs = inputs
        self._judge = judge
        self._workshop = workshop
        self._progress = progress
        self._latency: CostModel | None = None
        self.predicted: float | None = None
        self.sensitivity: Sensitivity | None = None
        if config.goal_name == "latency" and not workshop.is_target:
            raise ConfigError(
                f"--prune-latency is measured, but {spec.name} is another machine: prune there, "
                "or choose --prune-flops"
            )

    def widths(self, current: Graph, rankings: Sequence[Ranking], done: float) -> dict[int, int]:
        """The width of each group after the share `done` of what is to go has gone.

        Raises ConfigError, naming the least that can be reached, for a goal below that.
        """
        goal = self._config.goal
        if self._config.goal_name == "ratio":
            if self._config.allocation == "sensitivity":
                return self._by_sensitivity(current, rankings, done * goal)
            rule = {"uniform": uniform, "global": below_threshold}[self._config.allocation]
            return rule(rankings, done * goal)
        share = 1 - done * (1 - goal)
        if self._config.goal_name == "params":
            return self._within(rankings, share, parameter_model(current.groups),
                                parameter_model(self._whole.groups))  # fmt: skip
        if self._config.goal_name == "flops":
            return self._within(rankings, share, flops_model(current.module, current.groups),
                                flops_model(self._whole.module, self._whole.groups))  # fmt: skip
        return self._within_latency(current, rankings, share, done == 1)

    def _by_sensitivity(
        self, current: Graph, rankings: Sequence[Ranking], ratio: float
    ) -> dict[int, int]:
        """Widths by curves that are measured once, on the unpruned graph."""
        if self.sensitivity is None:
            self.sensitivity = measure_sensitivity(
                current.module, current.groups, rankings, self._judge, progress=self._progress
            )
        curves = {curve.group: curve.points for curve in self.sensitivity.curves}
        return by_sensitivity(rankings, curves, self.sensitivity.whole, ratio)

    def _within(
        self, rankings: Sequence[Ranking], share: float, model: CostModel, whole: CostModel
    ) -> dict[int, int]:
        """The widths with which the model's cost is at most a share of the whole graph's."""
        try:
            return under_budget(rankings, model, share * whole.total({}))
        except BudgetError as error:
            floor = error.floor / whole.total({})
            raise ConfigError(
                f"--prune-{self._config.goal_name} {self._config.goal:g}: cannot be reached; "
                f"with all groups at their narrowest {floor:.3f} is left"
            ) from error

    def _within_latency(
        self,
        current: Graph,
        rankings: Sequence[Ranking],
        share: float,
        last: bool,
    ) -> dict[int, int]:
        """Widths by the table; in the last step corrected until the measured latency is right."""
        inputs = self._inputs()
        if self._latency is None:
            self._latency = latency_model(
                self._whole.module, self._whole.groups, rankings, self._workshop,
                inputs, self._progress,
            )  # fmt: skip
        narrowest = {ranking.group: ranking.widths[-1] for ranking in rankings}
        floor = self._latency.total(narrowest) / self._latency.total({})
        asked, best, least = share, {}, np.inf
        for attempt in range(_CORRECTIONS if last else 1):
            widths = self._within(rankings, asked, self._latency, self._latency)
            self.predicted = self._latency.total(widths) / self._latency.total({})
            if not last:
                return widths
            if self._progress is not None:
                self._progress(f"check the latency {attempt + 1}", attempt / _CORRECTIONS)
            keep = {r.group: r.kept(widths[r.group]) for r in rankings}
            smaller = shrink(current.module, keep)
            before, after = latencies(self._whole.module, smaller, self._workshop, inputs)
            found = after / before
            if abs(found / share - 1) < least:
                best, least = widths, abs(found / share - 1)
            if least <= _NEAR:
                break
            # The table may say of the floor that it is higher than what was just measured.
            asked = max(asked * share / found, floor)
        return best
