"""Which positions of a whole graph's tensors are left in a pruned one's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import static_shape
from tinsmith.passes.prune.groups import Groups

# By tensor and axis (from 0), int64: positions of the whole tensor, in order.
Positions = Mapping[tuple[str, int], np.ndarray]


def positions_left(
    module: tvm.IRModule, groups: Groups, keep: Mapping[int, np.ndarray]
) -> Positions:
    """The positions that stay of the tensors that groups run through, if they keep these units.

    `groups` are those of `module`; those that `keep` does not name stay whole. Tensors that
    lose nothing are not named.
    """
    gone: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for group in groups:
        if group.index not in keep:
            continue
        removed = np.setdiff1d(np.arange(group.units), keep[group.index])
        for channels in group.tensors if removed.size else ():
            gone[channels.tensor, channels.axis].append(channels.indices[removed].ravel())
    shapes = {node.name: static_shape(node.variable) for node in Dataflow(module).nodes}
    return {
        (name, axis): np.delete(np.arange(shape[axis]), np.concatenate(parts))
        for (name, axis), parts in gone.items()
        if (shape := shapes.get(name)) is not None
    }


def composed(first: Positions, then: Positions) -> Positions:
    """Positions after two steps of pruning, of which the second knows only what the first left."""
    both = {**first}
    for place, positions in then.items():
        both[place] = first[place][positions] if place in first else positions
    return both
