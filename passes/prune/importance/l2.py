"""Importance by the Euclidean norm of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def l2_norm(weights: Sequence[np.ndarray]) -> np.ndarray:
    """The Euclidean norm of all weights of each unit, float64 `[units]`.

    `weights` has an array `[units, values]` for each constant that computes the units; the
    norm is that of their rows behind one another. Source: He et al. 2018, "Soft Filter
    Pruning", section 3.2, with p = 2 (arXiv:1808.06866).
    """
    return np.sqrt(np.sum([np.square(rows, dtype=np.float64).sum(1) for rows in weights], axis=0))
