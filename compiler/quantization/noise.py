"""Signal and noise of a tensor that is computed in two ways."""

from __future__ import annotations

import numpy as np


class SignalToNoise:
    """Accumulates the signal and the noise of one tensor over samples."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._product = 0.0
        self._other = 0.0

    def update(self, exact: np.ndarray, approximate: np.ndarray) -> None:
        """Add one sample; the arrays have one shape."""
        a = np.ascontiguousarray(exact, np.float32).ravel()
        b = np.ascontiguousarray(approximate, np.float32).ravel()
        difference = a - b
        # Sums of one array in float32: BLAS keeps many partial sums, so five digits are safe.
        self._signal += float(a @ a)
        self._other += float(b @ b)
        self._product += float(a @ b)
        self._noise += float(difference @ difference)

    @property
    def decibels(self) -> float:
        """10 log10(signal power / noise power); infinite where there is no noise."""
        if self._noise == 0:
            return float("inf")
        return 10 * float(np.log10(max(self._signal, 1e-300) / self._noise))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between exact and approximate values."""
        length = np.sqrt(self._signal * self._other)
        return float(self._product / length) if length else 1.0
