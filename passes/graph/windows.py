"""The windows of a tensor that a convolution multiplies: its operand as rows of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """The windows of operands `[N, H, W, C]` of a convolution.

    `kernel` is (KH, KW), `padding` (top, left, bottom, right). A window has K = KH * KW * C
    values, in the order of HWIO weights.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)

    def places(self, shape: Sequence[int]) -> np.ndarray:
        """(image, row, column) of each result for operands of `shape`, int64 `[windows, 3]`."""
        top, left, bottom, right = self.padding
        padded = (shape[1] + top + bottom, shape[2] + left + right)
        counts = [
            (size - (k - 1) * d - 1) // stride + 1
            for size, k, d, stride in zip(
                padded, self.kernel, self.dilation, self.strides, strict=True
            )
        ]
        extents = (shape[0], *counts)
        return np.stack(np.meshgrid(*map(np.arange, extents), indexing="ij"), -1).reshape(-1, 3)

    def at(self, array: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The windows behind the results at `places`, `[len(places), K]`."""
        top, left, bottom, right = self.padding
        array = np.pad(array, ((0, 0), (top, bottom), (left, right), (0, 0)))
        image, row, column = (places * (1, *self.strides)).T
        taps = [
            array[image, row + i * self.dilation[0], column + j * self.dilation[1]]
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]
        return np.concatenate(taps, axis=1)
