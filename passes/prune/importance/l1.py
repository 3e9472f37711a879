"""Importance by the sum of absolute weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def l1_norm(weights: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the absolute weights of each unit, float64 `[units]`.

    `weights` has an array `[units, values]` for each constant that computes the units; their
    scores are added. Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets",
    section 3.1 (arXiv:1608.08710).
    """
    return np.sum([np.abs(rows, dtype=np.float64).sum(1) for rows in weights], axis=0)
