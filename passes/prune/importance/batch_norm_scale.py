"""Importance by the scale of batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def scale_magnitude(scales: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the absolute scales (gamma) of each unit, float64 `[units]`.

    `scales` has an array `[units, block]` for each batch normalisation of the units, of
    whose channels `block` belong to one unit. Source: Liu et al. 2017, "Learning
    Efficient Convolutional Networks through Network Slimming", section 3 (arXiv:1708.06519).
    """
    return np.sum([np.abs(rows, dtype=np.float64).sum(1) for rows in scales], axis=0)
