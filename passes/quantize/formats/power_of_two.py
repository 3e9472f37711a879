"""Exponential levels: zero and signed powers of two; a product becomes a shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize.formats.base import BlockFormat, Parameters
from tinsmith.passes.quantize.formats.granularity import FormatError

# Powers of two below this are no normal float32.
_SMALLEST_EXPONENT = -126


@dataclass(frozen=True)
class PowerOfTwo(BlockFormat):
    """x' = sign(Q) * 2^(e - m + |Q|) for Q in -m .. m with m = 2^(n-1) - 1; Q = 0 is zero.

    e = floor(log2(4/3 max|x|)) is the exponent of the largest level: that to which max|x|
    is nearest. A value goes to the nearest level on the linear scale, so between 2^k and
    2^(k+1) the limit is 3/2 * 2^k; there the larger level is taken. The relative
    error is at most 1/3 down to the smallest level, below which values go to it or to zero.

    Sources: Miyashita et al. 2016, "Convolutional Neural Networks using Logarithmic Data
    Representation" (arXiv:1603.01025); Zhou et al. 2017, "Incremental Network Quantization",
    equations 2 to 4 (arXiv:1702.03044), which uses one magnitude less.

    Parameter: `exponent` int32, e. Codes: int8. Bits: 2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise FormatError(f"power-of-two codes have 2 to 8 bits, not {self.bits}")

    @property
    def magnitudes(self) -> int:
        """Number of positive levels, m."""
        return int(2 ** (self.bits - 1) - 1)

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        largest = np.abs(blocks).max(1)
        # A block of zeros may have any exponent; 0 keeps the levels in the normal range.
        exponent = np.where(largest > 0, _nearest_exponent(largest), 0)
        lowest = _SMALLEST_EXPONENT + self.magnitudes - 1
        # 2^128 is not a float32: values that round to it get the largest level there is.
        return {"exponent": np.clip(exponent, lowest, 127).astype(np.int32)}

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        magnitude = np.abs(blocks)
        top = parameters["exponent"][:, None]
        code = np.clip(_nearest_exponent(magnitude) - top + self.magnitudes, 1, self.magnitudes)
        smallest = np.ldexp(np.float64(1), top - self.magnitudes + 1)
        code = np.where(magnitude < smallest / 2, 0, code)
        return np.where(blocks < 0, -code, code).astype(np.int8)

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        codes = codes.astype(np.int32)
        exponent = parameters["exponent"][:, None] - self.magnitudes + np.abs(codes)
        signs = codes.astype(np.float32)
        return np.where(codes == 0, np.float32(0), np.copysign(_power(exponent), signs))

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        magnitude = np.abs(blocks).astype(np.float64)
        top = parameters["exponent"][:, None]
        smallest = np.ldexp(np.float64(1), top - self.magnitudes + 1)
        largest = np.ldexp(np.float64(1), top)
        inside = np.maximum(magnitude / 3, smallest / 2)
        return np.maximum(inside, magnitude - largest)


def _nearest_exponent(magnitude: np.ndarray) -> np.ndarray:
    """k of the power of two 2^k nearest to each magnitude (of 0: that of a tiny one)."""
    mantissa, exponent = np.frexp(magnitude)  # mantissa in 0.5 .. 1
    return np.where(magnitude > 0, exponent - 1 + (mantissa >= 0.75), -(2**20))


def _power(exponent: np.ndarray) -> np.ndarray:
    """2^exponent as float32; exponents are at least -126 wherever a code is not 0."""
    return np.ldexp(np.float32(1), np.maximum(exponent, _SMALLEST_EXPONENT))
