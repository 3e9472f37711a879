"""Clipping the rarest values."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.quantize.observers.base import ObservationError, Observer
from tinsmith.passes.quantize.observers.histogram import DEFAULT_BINS, GrowingHistogram


class HistogramObserver(Observer):
    """An observer that decides by a histogram of all values."""

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        self._histogram = GrowingHistogram(bins)

    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        self._histogram.add(array, low, high)

    def _observed(self) -> GrowingHistogram:
        if not self._histogram.low <= self._histogram.high:
            raise ObservationError("no values were observed")
        return self._histogram


class PercentileObserver(HistogramObserver):
    """The range that contains `percentile` percent of all values, zeros included.

    Half of the rest is left out at each end; where one end is 0 (as behind a ReLU), that
    end is kept. Within a bin the values are taken to be evenly spread.
    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 4.1
    (arXiv:2004.09602).
    """

    def __init__(self, percentile: float = 99.99, bins: int = DEFAULT_BINS) -> None:
        super().__init__(bins)
        if not 50 < percentile <= 100:
            raise ValueError(f"the percentile lies in 50..100, not {percentile}")
        self._percentile = percentile

    def range(self) -> tuple[float, float]:
        histogram = self._observed()
        edges, counts = histogram.occupied()
        zero = int(np.flatnonzero(edges == 0.0)[0])
        below = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
        # A step at zero: all zeros lie between the edge's two sides.
        edges = np.insert(edges, zero, 0.0)
        below = np.insert(below, zero + 1, below[zero])
        below[zero + 1 :] += histogram.zeros
        tail = (100 - self._percentile) / 200 * below[-1]
        low = _highest_at(below, edges, tail)
        high = -_highest_at((below[-1] - below)[::-1], -edges[::-1], tail)
        low = min(max(low, histogram.low), histogram.high)
        high = max(min(high, histogram.high), histogram.low)
        return min(low, high), max(low, high)


def _highest_at(below: np.ndarray, edges: np.ndarray, count: float) -> float:
    """The largest position with at most `count` values below it; `below` does not decrease."""
    index = int(np.searchsorted(below, count, side="right"))
    if index == len(below):
        return float(edges[-1])
    share = (count - below[index - 1]) / (below[index] - below[index - 1])
    return float(edges[index - 1] + share * (edges[index] - edges[index - 1]))
