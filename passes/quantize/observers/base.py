"""What every observer offers: it is shown arrays one by one and answers a range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np


class ObservationError(ValueError):
    """The observed values allow no range: there are none, or they are not finite."""


class Observer(ABC):
    """Watches the values of one tensor, in memory that does not grow with their number."""

    def update(self, array: np.ndarray) -> None:
        """Take the values of one array into account; empty arrays change nothing.

        Raises ObservationError if the array holds NaN or infinity.
        """
        array = np.asarray(array)
        if array.size:
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ObservationError("values are NaN or infinite")
            self._update(array, low, high)

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The range (low, high) to quantise; it may exclude outliers, and need not contain 0.

        Raises ObservationError if nothing was observed.
        """

    @abstractmethod
    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        """Take a non-empty array of finite values into account, whose extremes are given."""


ObserverFactory = Callable[[], Observer]
