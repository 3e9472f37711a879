"""Float weights as codes with scales by group: even levels, powers of two, or k-means.

Numpy only. The scale of a group is chosen so that its extreme value is a level: the lowest one
(-8 of -8 to 7), which makes scales signed and uses all codes, or 1 where levels are learned
from the weights over their scales. Scales are rounded to float16 before codes are chosen.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from tinsmith.passes.quantize.adaptive_rounding import carried_rounding
from tinsmith.passes.quantize.formats import KMeansCodebook, PowerOfTwo
from tinsmith.targets.compressed_weights import EVEN_LEVELS, CompressedWeights, Grouping


class Method(Enum):
    """How weights are stored: even levels of 8 or 4 bits, 16 levels by k-means, powers of two."""

    INT8 = "int8"
    INT4 = "int4"
    KMEANS4 = "kmeans4"
    POWERS4 = "powers4"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 if self is Method.INT8 else 4


# So many weights of a layer stand for all when levels are learned, and of these so many are
# clustered.
_SORTED, _SELECTED = 2**20, 2**16
# The level of a group's extreme value.
_EXTREME = {Method.INT8: -128, Method.INT4: -8, Method.KMEANS4: 1, Method.POWERS4: 1}
# Zero and signed powers of two, 15 levels: the last stands twice.
_CODES = np.minimum(np.arange(-7, 9), 7).astype(np.int8)
_POWERS = PowerOfTwo(bits=4).decode(_CODES, {"exponent": np.zeros((), np.int32)})
# The largest float16, and the smallest scale that keeps three digits.
_LARGEST, _SMALLEST = 65504.0, 2.0**-20


def can_be_scaled(weights: np.ndarray) -> bool:
    """Whether float16 scales can express the weights: finite, and not all tiny."""
    largest = float(np.abs(weights).max()) if weights.size else 0.0
    return bool(np.isfinite(largest)) and 128 * _SMALLEST < largest < _LARGEST


def compress(
    weights: np.ndarray, method: Method, size: int, gram: np.ndarray | None = None
) -> CompressedWeights:
    """`weights` (HWIO or `[K, N]`, float32, for which `can_be_scaled`) as codes.

    `size` is the largest group, an even number. With `gram`, the `[K, K]` sum of x x^T over
    data (`adaptive_rounding.GramObserver`), rounding keeps x @ w: codes of 4 bits are chosen by
    `carried_rounding`, and k-means weights the error of each weight by the square of its inputs.
    """
    taps = int(np.prod(weights.shape[:-2]))
    grouping = Grouping.of(taps, weights.shape[-2], size)
    flat = weights.reshape(-1, weights.shape[-1]).astype(np.float32)
    groups = grouping.indices()
    extreme = _extremes(flat, groups)
    scales = (extreme / np.float32(_EXTREME[method])).astype(np.float16)
    wide = scales.astype(np.float32)[groups]
    divisors = np.where(wide == 0, np.float32(1), wide)
    if method is Method.INT8:
        codes = np.clip(np.rint(flat / divisors), -128, 127).astype(np.int8)
        return CompressedWeights(codes.reshape(weights.shape), scales, None, grouping)
    levels = EVEN_LEVELS if method is Method.INT4 else _POWERS
    if method is Method.KMEANS4:
        inputs = np.ones(len(flat)) if gram is None else np.diag(gram)
        levels = _learned_levels(flat / divisors, np.square(wide) * inputs[:, None])
    if gram is None:
        codes = _nearest(flat / divisors, levels)
    else:

        def nearest(row: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = _nearest(values / divisors[row], levels)
            return chosen, levels[chosen] * wide[row]

        codes = carried_rounding(flat, gram, nearest).astype(np.uint8)
    return CompressedWeights(codes.reshape(weights.shape), scales, levels, grouping)


def _extremes(flat: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`[groups, O]`: the value of largest magnitude of each group, with its sign."""
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    high = np.maximum.reduceat(flat, begins, axis=0)
    low = np.minimum.reduceat(flat, begins, axis=0)
    return np.where(high > -low, high, low)


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """uint8 codes of the nearest of the sorted `levels`."""
    if levels is EVEN_LEVELS:
        return (np.clip(np.rint(values), -8, 7) + 8).astype(np.uint8)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


def _learned_levels(values: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """16 sorted levels (float32) by k-means of `values`, whose errors count by `importance`.

    The selection that is clustered takes each value as often as its importance demands.
    """
    every = max(1, values.size // _SORTED)
    values, importance = values.ravel()[::every], importance.ravel()[::every]
    order = np.argsort(values)
    weight = importance[order]
    cumulated = np.cumsum(weight if weight.any() else np.ones(weight.size))
    shares = (np.arange(_SELECTED) + 0.5) / _SELECTED * cumulated[-1]
    selected = values[order][np.searchsorted(cumulated, shares)]
    return np.asarray(KMeansCodebook(bits=4).fit(selected)["centres"].reshape(-1), np.float32)
