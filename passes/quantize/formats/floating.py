"""Shorter floating point as a precision of computation: bfloat16 and IEEE half."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tinsmith.passes.quantize.formats.base import NumberFormat, Parameters, checked


@dataclass(frozen=True)
class FloatingPoint(NumberFormat):
    """Values rounded to nearest, ties to even, to a float of 16 bits; no parameters.

    `significand` counts the bits of the significand with its hidden one (p), so that the
    relative error is at most 2^-p; below 2^`smallest_exponent` values are subnormal and the
    error is absolute. Values beyond the largest finite one saturate to it: an
    overflow to infinity would spoil everything behind it.

    Sources: IEEE 754-2019 (binary16); Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep
    Learning Training" (arXiv:1905.12322).
    """

    name: str
    significand: int
    smallest_exponent: int
    bits: int = 16

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of the codes, which are the values themselves."""
        return np.dtype(getattr(ml_dtypes, self.name, None) or self.name)

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(ml_dtypes.finfo(self.dtype).max)

    def fit(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def encode(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        return np.clip(checked(array), -self.largest, self.largest).astype(self.dtype)

    def decode(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        return codes.astype(np.float32)

    def error_bound(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        magnitude = np.abs(checked(array)).astype(np.float64)
        unit = 2.0**-self.significand
        rounding = np.maximum(magnitude * unit, 2.0**self.smallest_exponent * unit)
        return np.maximum(rounding, magnitude - self.largest)


BFLOAT16 = FloatingPoint("bfloat16", significand=8, smallest_exponent=-126)
FLOAT16 = FloatingPoint("float16", significand=11, smallest_exponent=-14)
