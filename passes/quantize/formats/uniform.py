"""Uniform formats: levels at equal distance, with or without an offset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize import numbers
from tinsmith.passes.quantize.formats.base import BlockFormat, Parameters, beyond
from tinsmith.passes.quantize.formats.granularity import FormatError
from tinsmith.passes.quantize.numbers import IntegerRange, integer_range

_WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class UniformAffine(BlockFormat):
    """Asymmetric: Q(x) = round((x - min) / (max - min) * (2^n - 1)), with zero exact.

    Written with scale s = (max - min) / (2^n - 1) and zero point z = round(-min / s):
    Q(x) = clip(round(x / s) + z, 0, 2^n - 1) and x' = (Q - z) s. Rounding z shifts the range
    by at most s / 2, so that 0 is exactly a level. `signed` shifts all codes by -2^(n-1).

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", equations 1 and 12 (arXiv:1712.05877).

    Parameters: `scale` float32 and `zero_point` int32. Codes: uint8, or int8 if signed.
    """

    signed: bool = False

    def __post_init__(self) -> None:
        _check_width(self.bits)

    @property
    def codes(self) -> IntegerRange:
        """The codes in use."""
        return integer_range(self.bits, signed=self.signed)

    def parameters(
        self, low: np.ndarray | float, high: np.ndarray | float
    ) -> dict[str, np.ndarray]:
        """Parameters for observed ranges, of the shape of the bounds."""
        scale, zero_point = numbers.affine_parameters(low, high, self.codes)
        return {"scale": scale, "zero_point": zero_point}

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        return self.parameters(blocks.min(1), blocks.max(1))

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale, zero_point = parameters["scale"], parameters["zero_point"]
        return numbers.quantize(blocks, scale, zero_point, self.codes, axis=0)

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        return numbers.dequantize(codes, parameters["scale"], parameters["zero_point"], axis=0)

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale = parameters["scale"].astype(np.float64)[:, None]
        zero_point = parameters["zero_point"][:, None]
        low, high = (self.codes.low - zero_point) * scale, (self.codes.high - zero_point) * scale
        return scale / 2 + beyond(blocks, low, high)


@dataclass(frozen=True)
class UniformSymmetric(BlockFormat):
    """Symmetric: Q(x) = round(x / max|x| * (2^(n-1) - 1)), zero point 0.

    With scale s = max|x| / (2^(n-1) - 1): Q(x) = clip(round(x / s), -(2^(n-1) - 1),
    2^(n-1) - 1) and x' = Q s. The lowest code stays unused, so that the levels of x and -x
    are the same and products of weights cannot reach the one asymmetric extreme.

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
    inference", section 2.2 (arXiv:1806.08342).

    Parameter: `scale` float32. Codes: int8.
    """

    def __post_init__(self) -> None:
        _check_width(self.bits)

    @property
    def codes(self) -> IntegerRange:
        """The codes in use."""
        return integer_range(self.bits, signed=True, narrow=True)

    def parameters(
        self, low: np.ndarray | float, high: np.ndarray | float
    ) -> dict[str, np.ndarray]:
        """Parameters for observed ranges, of the shape of the bounds."""
        return {"scale": numbers.symmetric_parameters(low, high, self.codes)}

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        return self.parameters(blocks.min(1), blocks.max(1))

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        return numbers.quantize(blocks, parameters["scale"], 0, self.codes, axis=0)

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        return numbers.dequantize(codes, parameters["scale"], 0, axis=0)

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale = parameters["scale"].astype(np.float64)[:, None]
        return scale / 2 + beyond(blocks, self.codes.low * scale, self.codes.high * scale)


@dataclass(frozen=True)
class MeanCentred(BlockFormat):
    """Symmetric about the mean: Q(x) = round((x - mean) / max|x - mean| * (2^(n-1) - 1)).

    With scale s = max|x - mean| / (2^(n-1) - 1): x' = mean + Q s. It is the mean
    normalisation of statistics with a symmetric quantiser behind it: for values that
    cluster away from zero it spends no codes on the gap. The mean, not zero, is exactly a
    level; a product with these weights needs the sum of the other operand once for
    the mean, as an affine zero point does.

    Parameters: `scale` and `mean` float32. Codes: int8.
    """

    def __post_init__(self) -> None:
        _check_width(self.bits)

    @property
    def codes(self) -> IntegerRange:
        """The codes in use."""
        return integer_range(self.bits, signed=True, narrow=True)

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        mean = blocks.mean(1, dtype=np.float64).astype(np.float32)
        low, high = blocks.min(1).astype(np.float64), blocks.max(1).astype(np.float64)
        scale = numbers.symmetric_parameters(
            np.minimum(low - mean, 0), np.maximum(high - mean, 0), self.codes
        )
        return {"scale": scale, "mean": mean}

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        centred = blocks - parameters["mean"][:, None]
        return numbers.quantize(centred, parameters["scale"], 0, self.codes, axis=0)

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        return (
            numbers.dequantize(codes, parameters["scale"], 0, axis=0) + parameters["mean"][:, None]
        )

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale = parameters["scale"].astype(np.float64)[:, None]
        mean = parameters["mean"].astype(np.float64)[:, None]
        low, high = mean + self.codes.low * scale, mean + self.codes.high * scale
        return scale / 2 + beyond(blocks, low, high)


def _check_width(bits: int) -> None:
    if bits not in _WIDTHS:
        raise FormatError(
            f"uniform codes of {bits} bits are not supported; choose 8, 4 or 2 (3, 5, 6, 7 too)"
        )
