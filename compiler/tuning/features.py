"""Numbers that describe a candidate, for the cost model.

Candidates of all tasks of one template share a layout, so that what is learnt of
one kernel serves the next: the workload's integers as logarithms, the decisions
as they are and as logarithms, and the logarithm of the product of each pair of
decisions (accumulators of a tile, elements of a task).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from tinsmith.targets.template import Decisions


def feature_matrix(
    numbers: Mapping[str, int],
    names: Sequence[str],
    decided: Sequence[str],
    candidates: Sequence[Decisions],
) -> np.ndarray:
    """One float32 row for each candidate.

    `names` are the workload's numbers to take, `decided` the decisions, in order. What a workload
    or a candidate lacks is 0: a template may decide more for some workloads than for others.
    """
    workload = np.log2(1.0 + np.array([numbers.get(name, 0) for name in names], np.float64))
    values = np.array([[c.get(name, 0) for name in decided] for c in candidates], np.float64)
    values = values.reshape(len(candidates), len(decided))
    logarithms = np.log2(1.0 + values)
    columns = [np.tile(workload, (len(candidates), 1)), values, logarithms]
    pairs = list(itertools.combinations(range(len(decided)), 2))
    columns += [logarithms[:, [a]] + logarithms[:, [b]] for a, b in pairs]
    return np.hstack(columns).astype(np.float32)
