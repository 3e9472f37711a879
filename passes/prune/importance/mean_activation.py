"""Importance by the mean magnitude of the activations."""

from __future__ import annotations

import numpy as np


class MeanActivation:
    """The mean absolute value of each channel of a tensor, over arrays shown one by one.

    Source: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", section 2.2, "Activation" (arXiv:1611.06440), of magnitudes, because
    activations need not be positive. Memory does not grow with the number of arrays.
    """

    def __init__(self, axis: int) -> None:
        """`axis` is that of the channels."""
        self._axis = axis
        self._sum: np.ndarray | None = None
        self._count = 0

    def update(self, array: np.ndarray) -> None:
        """Take the values of one array into account."""
        others = tuple(i for i in range(array.ndim) if i != self._axis % array.ndim)
        total = self._measure(array).sum(others, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += array.size // total.size

    @property
    def scores(self) -> np.ndarray:
        """float64, one for each channel. Raises ValueError if nothing was observed."""
        if self._sum is None:
            raise ValueError("no sample was observed")
        return self._sum / self._count

    def _measure(self, array: np.ndarray) -> np.ndarray:
        return np.abs(array)
