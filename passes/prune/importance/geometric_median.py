"""Importance by the distance to the other units: what the others can stand for goes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distance_to_others(weights: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the Euclidean distances from each unit's weights to all others', `[units]`.

    `weights` has an array `[units, values]` for each constant that computes the units; a
    unit is the point of all its values. The unit with the smallest sum is nearest to the
    geometric median. Source: He et al. 2019, "Filter Pruning via Geometric Median",
    equation 7 (arXiv:1811.00250).
    """
    from scipy.spatial.distance import pdist, squareform  # late: whoever does not prune needs none

    points = np.concatenate([rows.astype(np.float64) for rows in weights], axis=1)
    return np.asarray(squareform(pdist(points)).sum(1))
