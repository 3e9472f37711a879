"""A histogram of a fixed number of bins that grows with the range of the values, exactly."""

from __future__ import annotations

import math

import numpy as np

DEFAULT_BINS = 4096
# Values are binned in pieces of this many, which stay in the cache.
_CHUNK = 2**16
# The bins of the largest magnitude are at least this fraction of it wide: indices stay small.
_FINEST = 2.0**-40
_SMALLEST_WIDTH = 2.0**-126


class GrowingHistogram:
    """Counts of values in bins [k w, (k + 1) w) of a width w that is a power of two.

    When a value falls outside, w doubles as often as needed, and bins 2k and 2k+1 become
    bin k: no count is ever spread over bins by guessing. w is the smallest power of two
    with which all values fit `bins` bins; so the histogram depends on the values only,
    not on their order or on how they were divided into arrays, and between half and
    all of the bins are in use. 0 is always the edge of a bin. Values that are exactly 0, of
    which ReLU makes many, are counted apart: they are quantised without error.
    """

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        if bins < 16:
            raise ValueError(f"a histogram needs at least 16 bins, not {bins}")
        self._bins = bins
        self._counts = np.zeros(bins, np.int64)
        self._first = 0  # the index k of the first bin
        self.width = _SMALLEST_WIDTH
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self._counts.sum()) + self.zeros

    def add(self, array: np.ndarray, low: float, high: float) -> None:
        """Count the values of a non-empty array whose extremes are `low` and `high`."""
        self._grow(min(self.low, low), max(self.high, high))
        values = array.reshape(-1)
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        zeros = values.size - np.count_nonzero(values)
        self.zeros += zeros
        # A scale that float32 cannot hold, or indices it cannot count, need float64.
        narrow = values.dtype == np.float32 and self.width >= 2.0**-100
        narrow = narrow and max(abs(self.low), abs(self.high)) / self.width < 2**23
        kind = np.float32 if narrow else np.float64
        inverse = kind(1 / self.width)
        for begin in range(0, values.size, _CHUNK):
            indices = values[begin : begin + _CHUNK].astype(kind) * inverse
            np.floor(indices, out=indices)
            found = np.bincount(indices.astype(np.intp) - self._first, minlength=self._bins)
            self._counts += found
        # Zero has the index 0.
        self._counts[-self._first] -= zeros

    def occupied(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges (n + 1, float64) and counts (n, int64) of the bins from `low` to `high` and 0.

        Zeros are not counted. Needs at least one value.
        """
        begin, end = _bins_of(min(self.low, 0.0), max(self.high, 0.0), self.width)
        counts = self._counts[begin - self._first : end + 1 - self._first]
        return np.arange(begin, end + 2) * self.width, counts.copy()

    def _grow(self, low: float, high: float) -> None:
        """Widen the bins until they hold `low`, `high` and 0, and move them to begin there."""
        if (low, high) == (self.low, self.high):
            return
        self.low, self.high = low, high
        low, high = min(low, 0.0), max(high, 0.0)
        width = max(self.width, _power_of_two(max(-low, high) * _FINEST))
        width = max(width, _power_of_two((high - low) / self._bins))
        begin, end = _bins_of(low, high, width)
        while end - begin + 1 > self._bins:
            width *= 2
            begin, end = _bins_of(low, high, width)
        doublings = round(math.log2(width / self.width))
        old = np.flatnonzero(self._counts)
        moved = np.zeros_like(self._counts)
        if old.size:
            # An arithmetic shift rounds down, as the bins of negative values need.
            indices = ((old + self._first) >> min(doublings, 62)) - begin
            np.add.at(moved, indices, self._counts[old])
        self._counts, self._first, self.width = moved, begin, width


def _bins_of(low: float, high: float, width: float) -> tuple[int, int]:
    """Indices of the bins of the two values."""
    return math.floor(low / width), math.floor(high / width)


def _power_of_two(value: float) -> float:
    """The largest power of two that does not exceed `value`, or the smallest width."""
    if value <= _SMALLEST_WIDTH:
        return _SMALLEST_WIDTH
    return math.ldexp(0.5, math.frexp(value)[1])
