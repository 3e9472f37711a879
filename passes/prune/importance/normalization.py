"""Scores of several groups brought to one scale, so that they can be ranked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np


def normalized(scores: np.ndarray, method: str) -> np.ndarray:
    """The scores `[units]` of a group by one of `NORMALIZATIONS`; they keep their order.

    Scores that are all zero stay so. Raises ValueError for an unknown method.
    """
    if method not in NORMALIZATIONS:
        raise ValueError(f"unknown normalisation {method}: {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS[method](np.asarray(scores, np.float64))


def _share(scores: np.ndarray, of: float) -> np.ndarray:
    return scores / of if of > 0 else scores


def _lamp(scores: np.ndarray) -> np.ndarray:
    """Each squared score over the sum of the squares that are no smaller.

    Source: Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-based Pruning",
    equation 3 (arXiv:2010.07611), for units instead of weights.
    """
    squares = np.square(scores)
    order = np.argsort(squares, kind="stable")
    remaining = np.cumsum(squares[order][::-1])[::-1]
    found = np.empty_like(squares)
    found[order] = squares[order] / np.where(remaining > 0, remaining, 1.0)
    return found


NORMALIZATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "none": lambda scores: scores,
        "mean": lambda scores: _share(scores, float(scores.mean())),
        "max": lambda scores: _share(scores, float(scores.max())),
        "sum": lambda scores: _share(scores, float(scores.sum())),
        "lamp": _lamp,
    }
)
