"""Integer arithmetic as a contract: what every integer kernel computes, in numpy.

All real arithmetic is IEEE 754 binary32, rounding to nearest, ties to even:

- quantise:   q = clip(rint(x * (1 / scale)) + zero_point, low, high)
- dequantise: x = float32(q - zero_point) * scale
- requantise: q = quantise(fma(float32(accumulator), multiplier, bias))

`rint` rounds half to even. The reciprocal of the scale is rounded to float32 once, at
compile time. Values beyond the integer range, infinities included, saturate. A NaN has
no code: data are checked before they are quantised, and a kernel that meets one
may store any code.

The accumulator of a product of `uint8` and `int8` is `int32` and must not overflow:
`largest_accumulation` says how many products are safe. Its conversion to float32 rounds
above 2^24.

Where something is added to a product, the two are rounded once: `fused_multiply_add` computes
what the kernels of every target do. Of two products that are added the second is fused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The smallest normal float32: the reciprocal of a smaller scale would overflow or lose bits.
SMALLEST_SCALE = np.float32(2.0**-126)
LARGEST_SCALE = np.float32(2.0**126)


@dataclass(frozen=True)
class IntegerRange:
    """The codes `low` .. `high`, both included, and the numpy dtype that holds them."""

    low: int
    high: int
    dtype: str

    def __post_init__(self) -> None:
        limits = np.iinfo(self.dtype)
        if not limits.min <= self.low < self.high <= limits.max:
            raise ValueError(f"codes {self.low}..{self.high} do not fit {self.dtype}")

    @property
    def steps(self) -> int:
        """Number of intervals between neighbouring codes."""
        return self.high - self.low


def integer_range(bits: int, *, signed: bool, narrow: bool = False) -> IntegerRange:
    """The codes of `bits` bits, 1 to 8; `narrow` leaves out the lowest, so that -high is low.

    Raises ValueError for other widths and for narrow unsigned codes.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits}-bit codes are not supported; choose 1 to 8 bits")
    if narrow and (not signed or bits < 2):
        raise ValueError("only signed codes of at least 2 bits have a narrow range")
    if not signed:
        return IntegerRange(0, 2**bits - 1, "uint8")
    half = 2 ** (bits - 1)
    return IntegerRange(-half + narrow, half - 1, "int8")


UINT8 = integer_range(8, signed=False)
INT8 = integer_range(8, signed=True)
NARROW_INT8 = integer_range(8, signed=True, narrow=True)


def affine_parameters(
    low: np.ndarray | float, high: np.ndarray | float, codes: IntegerRange
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (int32) for values in `low` .. `high`, elementwise.

    The range is first widened to contain zero, then shifted by less than a step so that
    zero is exactly a code: padding, ReLU and masks depend on that. A range that
    is empty gets a scale of 1.

    Raises ValueError when a bound is not finite or `low` exceeds `high`.
    """
    low, high = _checked_range(low, high)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = _usable_scale(np.asarray((high - low) / codes.steps))
    zero_point = np.rint(codes.low - low / scale)
    return scale, np.clip(zero_point, codes.low, codes.high).astype(np.int32)


def symmetric_parameters(
    low: np.ndarray | float, high: np.ndarray | float, codes: IntegerRange
) -> np.ndarray:
    """Scale (float32) for values in `low` .. `high` with a zero point of 0, elementwise.

    The larger of |low| and |high| becomes the code `codes.high`. Raises ValueError as
    `affine_parameters` does.
    """
    low, high = _checked_range(low, high)
    return _usable_scale(np.asarray(np.maximum(np.abs(low), np.abs(high)) / codes.high))


def quantize(
    values: np.ndarray,
    scale: np.ndarray | float,
    zero_point: np.ndarray | int,
    codes: IntegerRange,
    axis: int | None = None,
) -> np.ndarray:
    """Codes of real values: clip(rint(x * (1 / scale)) + zero_point, low, high).

    `scale` and `zero_point` are scalars, arrays that broadcast against `values`, or,
    with `axis`, vectors along that axis. The result has the dtype of `codes`.
    """
    values = np.asarray(values, np.float32)
    scale = _along(np.asarray(scale, np.float32), axis, values.ndim)
    offset = _along(np.asarray(zero_point), axis, values.ndim).astype(np.float32)
    with np.errstate(over="ignore"):  # overflow is infinite, and saturates
        rounded = np.rint(values * (np.float32(1) / scale))
    return np.clip(rounded + offset, codes.low, codes.high).astype(codes.dtype)


def dequantize(
    quantized: np.ndarray,
    scale: np.ndarray | float,
    zero_point: np.ndarray | int,
    axis: int | None = None,
) -> np.ndarray:
    """Real values (float32) of codes: float32(q - zero_point) * scale."""
    quantized = np.asarray(quantized)
    scale = _along(np.asarray(scale, np.float32), axis, quantized.ndim)
    offset = _along(np.asarray(zero_point, np.int32), axis, quantized.ndim)
    return (quantized.astype(np.int32) - offset).astype(np.float32) * scale


def requantize(
    accumulator: np.ndarray,
    multiplier: np.ndarray | float,
    scale: np.ndarray | float,
    zero_point: np.ndarray | int,
    codes: IntegerRange,
    *,
    bias: np.ndarray | float | None = None,
    axis: int | None = None,
) -> np.ndarray:
    """Codes of an int32 accumulator in units of `multiplier` (input scale * weight scale).

    `scale` and `zero_point` are those of the result, per tensor; `multiplier` and `bias`
    (in real units) may be vectors along `axis`.
    """
    accumulator = np.asarray(accumulator, np.int32)
    multiplier = _along(np.asarray(multiplier, np.float32), axis, accumulator.ndim)
    real = accumulator.astype(np.float32)
    if bias is None:
        real = real * multiplier
    else:
        bias = _along(np.asarray(bias, np.float32), axis, accumulator.ndim)
        real = fused_multiply_add(real, multiplier, bias)
    return quantize(real, scale, zero_point, codes)


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 arrays, rounded once to float32.

    The product of two float32 is exact in float64. The sum is rounded to odd there: where it is
    inexact its last bit is set, which keeps it off the ties of float32. Source: Boldo and
    Melquiond, Emulation of a FMA and correctly rounded sums, IEEE Trans. Computers 57(4), 2008.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        # What the addition lost (Knuth's two-sum).
        part = total - product
        lost = (product - (total - part)) + (addend - part)
        even = (total.view(np.int64) & 1) == 0
        towards = np.where(lost > 0, np.inf, -np.inf)
        odd = np.where((lost != 0) & even & np.isfinite(lost), np.nextafter(total, towards), total)
        return odd.astype(np.float32)


def largest_accumulation(left: IntegerRange, right: IntegerRange) -> int:
    """How many products of two codes always fit an int32 accumulator."""
    extreme = max(abs(a * b) for a in (left.low, left.high) for b in (right.low, right.high))
    return (2**31 - 1) // extreme


def _checked_range(
    low: np.ndarray | float, high: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("a range to quantise must be finite")
    if (low > high).any():
        raise ValueError("a range to quantise has its low end above its high end")
    return low, high


def _usable_scale(scale: np.ndarray) -> np.ndarray:
    """`scale` as float32 with a finite reciprocal; 1 where it is zero."""
    limited = np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32)
    return np.where(scale == 0, np.float32(1), limited)


def _along(parameter: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """A vector, shaped so that it runs along `axis` of an array of that rank."""
    if axis is None or parameter.ndim == 0:
        return parameter
    if parameter.ndim != 1:
        raise ValueError(f"a parameter along axis {axis} is a vector, not {parameter.shape}")
    shape = [1] * rank
    shape[axis] = parameter.size
    return parameter.reshape(shape)
