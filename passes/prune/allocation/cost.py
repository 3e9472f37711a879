"""What a graph costs as a function of the widths of its groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tinsmith.passes.prune.groups import Channels, Member


@dataclass(frozen=True)
class Axis:
    """An axis of `extent` positions; `blocks` has, by group, positions of a unit and all units."""

    extent: int
    blocks: tuple[tuple[int, int, int], ...]

    def share(self, widths: Mapping[int, int]) -> float:
        """The share of the positions that stay; groups without a width stay whole."""
        gone = sum(
            block * (units - widths.get(group, units)) for group, block, units in self.blocks
        )
        return 1.0 - gone / self.extent


@dataclass(frozen=True)
class Term:
    """The cost of one layer, which depends on the share of its work that is left.

    The share is the product of those of `axes`. `points` are (share, cost), rising in share;
    between them the cost is linear, beyond them it is that of the nearest.
    """

    name: str
    axes: tuple[Axis, ...]
    points: tuple[tuple[float, float], ...]

    def share(self, widths: Mapping[int, int]) -> float:
        """The share of the layer's work that is left."""
        return float(np.prod([axis.share(widths) for axis in self.axes]))

    def cost(self, widths: Mapping[int, int]) -> float:
        """The cost with these widths."""
        shares, costs = zip(*self.points, strict=True)
        return float(np.interp(self.share(widths), shares, costs))


@dataclass(frozen=True)
class CostModel:
    """The sum of what layers cost, and of a `fixed` part that no width changes.

    `what` names the cost and `unit` its unit, for messages.
    """

    what: str
    unit: str
    terms: tuple[Term, ...]
    fixed: float = 0.0

    def total(self, widths: Mapping[int, int]) -> float:
        """The cost with these widths by group index; groups that are not named stay whole."""
        return self.fixed + sum(term.cost(widths) for term in self.terms)

    def depending(self) -> dict[int, tuple[Term, ...]]:
        """The terms that each group has an influence on."""
        found: dict[int, list[Term]] = defaultdict(list)
        for term in self.terms:
            for group in {block[0] for axis in term.axes for block in axis.blocks}:
                found[group].append(term)
        return {group: tuple(terms) for group, terms in found.items()}


def axes_of(
    shape: tuple[int, ...], through: Iterable[tuple[int, Member | Channels]]
) -> tuple[Axis, ...]:
    """The axes of a constant or tensor that groups run through, given as (group, where)."""
    blocks: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for group, where in through:
        units, block = where.indices.shape
        blocks[where.axis].append((group, block, units))
    return tuple(Axis(shape[axis], tuple(found)) for axis, found in sorted(blocks.items()))


def proportional(name: str, axes: tuple[Axis, ...], cost: float) -> Term:
    """A layer whose cost is proportional to the work that is left."""
    return Term(name, axes, ((0.0, 0.0), (1.0, cost)))
