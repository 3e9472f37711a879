"""The same share of every group."""

from __future__ import annotations

from collections.abc import Iterable

from passes.prune.allocation.ranking import Ranking


def uniform(rankings: Iterable[Ranking], ratio: float) -> dict[int, int]:
    """The width of each group without `ratio` of all its units, rounded to the nearest it may have.

    `ratio` lies in 0..1, and counts for less in groups of a smaller weight. Groups narrower than
    two steps keep all units.
    """
    return {r.group: r.nearest((1 - ratio * r.weight) * r.whole) for r in rankings}
