"""Observers that keep nothing but extremes."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.quantize.observers.base import ObservationError, Observer


class MinMaxObserver(Observer):
    """The smallest and the largest value ever seen."""

    def __init__(self) -> None:
        self._low = np.inf
        self._high = -np.inf

    def range(self) -> tuple[float, float]:
        if self._low > self._high:
            raise ObservationError("no values were observed")
        return self._low, self._high

    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        self._low, self._high = min(self._low, low), max(self._high, high)


class MovingAverageObserver(Observer):
    """Exponential moving averages of the extremes of each array.

    low <- (1 - c) low + c min(array), high likewise; the first array begins them.
    Source: Jacob et al. 2018, section 3.1 (arXiv:1712.05877). A single outlier moves the
    range by a share of c, so later arrays count for more than earlier ones.
    """

    def __init__(self, constant: float = 0.1) -> None:
        if not 0 < constant <= 1:
            raise ValueError(f"the averaging constant lies in 0..1, not {constant}")
        self._constant = constant
        self._range: tuple[float, float] | None = None

    def range(self) -> tuple[float, float]:
        if self._range is None:
            raise ObservationError("no values were observed")
        return self._range

    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        if self._range is None:
            self._range = low, high
        else:
            share, (old_low, old_high) = self._constant, self._range
            self._range = (
                old_low + share * (low - old_low),
                old_high + share * (high - old_high),
            )


class ChannelMinMaxObserver(Observer):
    """The extremes of each index along `axis`; `range` gives those over all of them."""

    def __init__(self, axis: int = -1) -> None:
        self._axis = axis
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest values, float32 vectors (extent of the axis,)."""
        if self._low is None or self._high is None:
            raise ObservationError("no values were observed")
        return self._low.copy(), self._high.copy()

    def range(self) -> tuple[float, float]:
        low, high = self.ranges()
        return float(low.min()), float(high.max())

    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        axis = self._axis % array.ndim
        others = tuple(i for i in range(array.ndim) if i != axis)
        lows = array.min(others).astype(np.float32)
        highs = array.max(others).astype(np.float32)
        if self._low is None or self._high is None:
            self._low, self._high = lows, highs
        elif lows.shape != self._low.shape:
            raise ObservationError(
                f"the number of channels changed from {self._low.size} to {lows.size}"
            )
        else:
            self._low, self._high = np.minimum(self._low, lows), np.maximum(self._high, highs)
