"""How much each group alone matters: quality against the share of its units that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.classes import Verdict
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.allocation.ranking import Ranking
from tinsmith.passes.prune.groups import Groups
from tinsmith.passes.prune.shrink import shrink

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Curve:
    """Points (ratio that went, quality then) of one group, all others whole, rising in ratio."""

    group: int
    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Sensitivity:
    """The curves of all groups that may be pruned; nothing is recovered.

    `measure` is "top-1" with labels and "agreement" without, `whole` that of the unpruned graph.
    """

    measure: str
    whole: float
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "measure": self.measure,
            "whole": self.whole,
            "groups": [
                {"name": c.name, "points": [list(p) for p in c.points]} for c in self.curves
            ],
        }


def measure_sensitivity(
    module: tvm.IRModule,
    groups: Groups,
    rankings: Sequence[Ranking],
    judge: Judge,
    ratios: Sequence[float] = RATIOS,
    progress: Progress | None = None,
) -> Sensitivity:
    """Shrink each group alone by each ratio, compile the graph and judge its classes.

    `judge` has its reference set to `module`. Source: Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", figure 2 (arXiv:1608.08710). Raises ConfigError if there is nothing
    to judge by.
    """
    reference = judge.verdict(module)
    if reference is None:
        raise ConfigError(
            "sensitivity is measured on classes: pass --evaluation or --calibration data for a "
            "model that answers a row of scores"
        )
    curves = []
    for index, ranking in enumerate(rankings):
        widths = dict.fromkeys(ranking.nearest((1 - ratio) * ranking.units) for ratio in ratios)
        points = []
        for width in sorted(widths, reverse=True):
            if progress is not None:
                progress(f"sensitivity of {groups[ranking.group].name}", index / len(rankings))
            if width < ranking.units:
                verdict = judge.verdict(shrink(module, {ranking.group: ranking.kept(width)}))
                points.append((1 - width / ranking.units, _quality(verdict or reference)))
        curves.append(Curve(ranking.group, groups[ranking.group].name, tuple(points)))
    measure = "agreement" if reference.top1 is None else "top-1"
    return Sensitivity(measure, _quality(reference), tuple(curves))


def _quality(verdict: Verdict) -> float:
    return verdict.agreement if verdict.top1 is None else verdict.top1
