"""One threshold for the scores of all groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinsmith.passes.prune.allocation.ranking import Ranking


def below_threshold(rankings: Sequence[Ranking], ratio: float) -> dict[int, int]:
    """Widths such that about `ratio` of all units goes, by what the loss of each adds.

    Scores have to be on one scale, see `tinsmith.passes.prune.importance.normalization`. The
    threshold is the quantile of the scores of all groups; widths are rounded to the nearest that a
    group may have, so it never loses all units. Source: Liu et al. 2017, "Learning
    Efficient Convolutional Networks through Network Slimming", section 3 (arXiv:1708.06519).
    """
    # What follows a unit that is worth keeping stays too.
    added = [np.maximum.accumulate(np.diff(ranking.losses)) for ranking in rankings]
    left = sum(ranking.units for ranking in rankings)
    go = left - (1 - ratio) * sum(ranking.whole for ranking in rankings)
    threshold = np.quantile(np.concatenate(added), max(go, 0.0) / left)
    return {
        ranking.group: ranking.nearest(int((scores >= threshold).sum()))
        for ranking, scores in zip(rankings, added, strict=True)
    }
