"""Widths by the rule and the goal that the options choose."""

from __future__ import annotations

from collections.abc import Sequence

import tvm

from compiler.errors import ConfigError
from compiler.pruning.config import PruneConfig
from passes.prune.allocation.cost import CostModel
from passes.prune.allocation.flops import flops_model
from passes.prune.allocation.global_threshold import below_threshold
from passes.prune.allocation.parameters import parameter_model
from passes.prune.allocation.ranking import Ranking
from passes.prune.allocation.under_budget import BudgetError, under_budget
from passes.prune.allocation.uniform import uniform
from passes.prune.groups import Groups


def widths_by_ratio(
    config: PruneConfig, rankings: Sequence[Ranking], done: float
) -> dict[int, int]:
    """The widths after the share `done` of what is to go has gone, for a goal in channels."""
    rule = {"uniform": uniform, "global": below_threshold}[config.allocation]
    return rule(rankings, done * config.goal)


def widths_by_count(
    config: PruneConfig,
    module: tvm.IRModule,
    groups: Groups,
    rankings: Sequence[Ranking],
    whole: float,
    done: float,
) -> dict[int, int]:
    """The widths for a goal in operations or parameters, of which there were `whole` once.

    Raises ConfigError, naming the least that can be reached, for a goal below that.
    """
    model = parameter_model(groups) if config.goal_name == "params" else flops_model(module, groups)
    return widths_within(config, rankings, model, whole, 1 - done * (1 - config.goal))


def widths_within(
    config: PruneConfig, rankings: Sequence[Ranking], model: CostModel, whole: float, share: float
) -> dict[int, int]:
    """The widths with which the model's cost is at most `share` of `whole`.

    Raises ConfigError as `widths_by_count` does.
    """
    try:
        return under_budget(rankings, model, share * whole)
    except BudgetError as error:
        raise ConfigError(
            f"--prune-{config.goal_name} {config.goal:g}: cannot be reached; with all groups at "
            f"their narrowest {error.floor / whole:.3f} is left"
        ) from error
