"""Widths from measured curves: groups that hardly matter lose more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinsmith.passes.prune.allocation.ranking import Ranking

# Halvings of the interval in which the common tolerance lies.
_HALVINGS = 40


def by_sensitivity(
    rankings: Sequence[Ranking],
    curves: Mapping[int, Sequence[tuple[float, float]]],
    whole: float,
    ratio: float,
) -> dict[int, int]:
    """Widths such that every group alone costs about as much, and about `ratio` of all units goes.

    `curves` has, for each group, points of the ratio of its units that went (others whole) and
    the quality that was measured then: accuracy or agreement, larger is better; `whole` is that
    of the graph of which nothing went. Between the points curves are linear; noise that makes
    one rise again is taken out. A group keeps the width at which its loss is the common
    tolerance, which is found by bisection. Source: Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", section 3.2 (arXiv:1608.08710), with the choice made by a rule.

    Raises ValueError for a group without a curve.
    """
    losses = {r.group: _losses(r, curves, whole) for r in rankings}
    total = sum(ranking.whole for ranking in rankings)

    def ratios(tolerance: float) -> dict[int, float]:
        # The largest ratio at which no more than the tolerance is lost.
        return {
            group: float(grid[np.searchsorted(loss, tolerance, side="right") - 1])
            for group, (grid, loss) in losses.items()
        }

    low, high = 0.0, max(float(loss[-1]) for _, loss in losses.values())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen = ratios(middle)
        gone = sum(chosen[ranking.group] * ranking.whole for ranking in rankings)
        low, high = (low, middle) if gone > ratio * total else (middle, high)
    chosen = ratios(low)
    gone = sum(chosen[ranking.group] * ranking.whole for ranking in rankings)
    # Where curves are flat, even the smallest tolerance lets too much go.
    scale = min(1.0, ratio * total / gone) if gone else 1.0
    return {r.group: r.nearest((1 - scale * chosen[r.group]) * r.whole) for r in rankings}


def _losses(
    ranking: Ranking, curves: Mapping[int, Sequence[tuple[float, float]]], whole: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios from 0 up to the largest measured one, and the loss at each, never falling."""
    points = sorted(curves.get(ranking.group, ()))
    if not points:
        raise ValueError(f"there is no curve for group {ranking.group}")
    ratios, qualities = np.array([(0.0, whole), *points]).T
    grid = np.linspace(0.0, ratios[-1], ranking.whole + 1)
    loss = whole - np.interp(grid, ratios, qualities)
    return grid, np.maximum.accumulate(np.maximum(loss, 0.0))
