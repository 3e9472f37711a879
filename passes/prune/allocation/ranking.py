"""A group as allocation sees it: widths that it may have, and what each would lose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinsmith.passes.prune.groups import Group

# "additive": the loss of several units is the sum of their scores; "cumulative": it is the
# largest of them, because a score counts all units before it.
Kind = Literal["additive", "cumulative"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of a group from the least to the most important one.

    `group` is its index, `step` the number of units by which its width may change.
    `order` `[units]` has the units, the least important first; `losses` `[units + 1]` what is
    lost with that many of them, in whatever unit the scores have. `whole` is how many units
    there were before any pruning. `weight` is how much of a ratio the group takes.
    """

    group: int
    step: int
    order: np.ndarray
    losses: np.ndarray
    whole: int
    weight: float = 1.0

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.order)

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of units that may stay, all of them first."""
        below = range((self.units - 1) // self.step * self.step, 0, -self.step)
        return (self.units, *below)

    def nearest(self, wanted: float) -> int:
        """The width nearest to `wanted` units; of two that are as near, the larger."""
        return min(self.widths, key=lambda width: (abs(width - wanted), -width))

    def at_least(self, wanted: float) -> int:
        """The narrowest width of no fewer than `wanted` units, or all of them."""
        # Products of shares and counts are right to a few digits less than float64 has.
        enough = [width for width in self.widths if width >= wanted - 1e-6]
        return min(enough, default=self.units)

    def loss(self, width: int) -> float:
        """What is lost with that many units left."""
        return float(self.losses[self.units - width])

    def kept(self, width: int) -> np.ndarray:
        """The units that stay, in their own order, int64 `[width]`."""
        return np.sort(self.order[self.units - width :])


def rank(
    group: Group,
    scores: np.ndarray,
    alignment: int,
    kind: Kind = "additive",
    whole: int | None = None,
    weight: float = 1.0,
) -> Ranking:
    """The ranking of a group by the scores of its units, `[units]`, of `whole` once.

    With a `weight` below 1 losses count for more, and a ratio takes less of the group.

    Widths are multiples of `alignment` channels, so that no vector register computes with
    lanes left empty. Raises ValueError unless there is a finite score for each unit.
    """
    if scores.shape != (group.units,) or not np.isfinite(scores).all():
        raise ValueError(
            f"group {group.name} needs {group.units} finite scores, not {scores.shape}"
        )
    order = np.argsort(scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    losses = np.concatenate([[0.0], np.cumsum(ranked) if kind == "additive" else ranked])
    return Ranking(
        group.index,
        aligned_step(group, alignment),
        order,
        losses / weight,
        whole or group.units,
        weight,
    )


def aligned_step(group: Group, alignment: int) -> int:
    """The fewest units whose channels fill whole vectors of `alignment` channels."""
    blocks = [member.indices.shape[1] for member in group.role("produces")] or [1]
    return max(alignment // math.gcd(alignment, block) for block in blocks)
