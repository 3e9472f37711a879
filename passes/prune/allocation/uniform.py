"""The same share of every group."""

from __future__ import annotations

from collections.abc import Iterable

from tinsmith.passes.prune.allocation.ranking import Ranking


def uniform(rankings: Iterable[Ranking], ratio: float) -> dict[int, int]:
    """The width of each group without `ratio` of all its units, rounded up to one that it may have.

    `ratio` lies in 0..1, and counts for less in groups of a smaller weight. No group loses more
    than was asked for: in narrow ones a step is a large share, and these are the first layers,
    whose errors all others inherit. Groups of one step keep all units.
    """
    return {r.group: r.at_least((1 - ratio * r.weight) * r.whole) for r in rankings}
