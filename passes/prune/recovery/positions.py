"""Which positions of a whole graph's tensors are left in a pruned one's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm

from passes.prune.analysis import Analysis
from passes.prune.labels import Traced

# By tensor and axis (from 0), int64: positions of the whole tensor, in order.
Positions = Mapping[tuple[str, int], np.ndarray]


def positions_left(module: tvm.IRModule, keep: Mapping[int, np.ndarray]) -> Positions:
    """The positions that stay of all tensors that lose any, if groups keep only these units."""
    analysis = Analysis(module)
    left: dict[tuple[str, int], np.ndarray] = {}
    for variable, traced in analysis.tracer.traced.items():
        if isinstance(traced, Traced) and traced.axes:
            axis, stays = analysis.kept(traced.labels, keep)
            if not stays.all():
                left[analysis.tracer.names[variable], axis] = np.flatnonzero(stays)
    return left


def composed(first: Positions, then: Positions) -> Positions:
    """Positions after two steps of pruning, of which the second knows only what the first left."""
    both = {**first}
    for place, positions in then.items():
        both[place] = first[place][positions] if place in first else positions
    return both
