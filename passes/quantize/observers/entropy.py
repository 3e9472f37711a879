"""The clipping that loses the least information, by Kullback-Leibler divergence."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.quantize.observers.histogram import DEFAULT_BINS
from tinsmith.passes.quantize.observers.percentile import HistogramObserver

_CANDIDATES = 128
# A bin that a candidate leaves empty gets this share of the probability.
_FLOOR = 1e-7


class EntropyObserver(HistogramObserver):
    """The range for which KL(P || Q) is least: P is clipped, Q is quantised.

    For a threshold T the range is [max(low, -T), min(high, T)]. P is the histogram within
    it, with the values outside added to its end bins; Q is the histogram within it, merged
    into 2^bits levels, each level spread evenly over its occupied bins. Thresholds
    run from those with one bin for each level to the largest magnitude. Exact zeros, which
    are quantised without error, do not take part.

    Source: Migacz 2017, "8-bit Inference with TensorRT" (GPU Technology Conference), for
    magnitudes; here the histogram is signed, so that asymmetric ranges are judged as such.
    """

    def __init__(self, bits: int = 8, bins: int = DEFAULT_BINS) -> None:
        super().__init__(bins)
        if not 2 <= bits <= 8:
            raise ValueError(f"codes of 2 to 8 bits have an entropy observer, not {bits}")
        self._levels = 2**bits

    def range(self) -> tuple[float, float]:
        histogram = self._observed()
        edges, counts = histogram.occupied()
        zero = int(np.flatnonzero(edges == 0.0)[0])
        negative, positive = zero, len(counts) - zero
        largest = max(negative, positive)
        if counts.sum() == 0 or len(counts) <= self._levels:
            return histogram.low, histogram.high
        smallest = max(1, self._levels // (2 if negative and positive else 1))
        best, threshold = np.inf, largest
        for reach in np.unique(np.linspace(largest, smallest, _CANDIDATES).astype(int))[::-1]:
            begin, end = max(0, zero - reach), min(len(counts), zero + reach)
            divergence = _divergence(counts, begin, end, self._levels)
            if divergence < best:
                best, threshold = divergence, int(reach)
        if threshold == largest:
            return histogram.low, histogram.high
        limit = threshold * histogram.width
        return max(histogram.low, -limit), min(histogram.high, limit)


def _divergence(counts: np.ndarray, begin: int, end: int, levels: int) -> float:
    """KL(P || Q) in nats of the range of bins `begin` .. `end` (excluded); see the class."""
    inside = counts[begin:end].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:begin].sum()
    reference[-1] += counts[end:].sum()
    if not inside.any():
        return float(np.inf)
    # The level of each bin, and the mean of a level over the bins that are occupied.
    level = np.arange(inside.size) * levels // inside.size
    occupied = reference > 0
    total = np.bincount(level, inside, levels)
    bins = np.bincount(level, occupied, levels)
    spread = np.divide(total, bins, out=np.zeros(levels), where=bins > 0)
    quantized = spread[level][occupied] / inside.sum()
    reference = reference[occupied] / reference.sum()
    return float(np.sum(reference * np.log(reference / np.maximum(quantized, _FLOOR))))
