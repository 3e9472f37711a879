"""Random importance: what every criterion has to beat."""

from __future__ import annotations

import numpy as np


def random_scores(units: int, seed: int) -> np.ndarray:
    """Even random numbers in 0..1, float64 `[units]`, the same for the same seed.

    Source: Mittal et al. 2018, "Recovering from Random Pruning" (arXiv:1801.10447).
    """
    return np.random.default_rng(seed).random(units)
