"""Whether two results agree: numbers by their distance relative to the reference's range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinsmith.compiler.module.golden import largest_deviation

# Largest deviation of a float output, relative to the range of the reference.
TOLERANCE = 1e-3

# The same by dtype, where that has few digits itself: two units in the last place of values as
# large as the range, and what a cast in the middle of the model adds.
_TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}

# The same where values are rounded to codes on the way and floats are added up in an order that
# differs between machines: a value within rounding of a tie may become the next code.
QUANTIZED_TOLERANCE = 2e-2

# The same for another implementation, where codes differ sooner: networks with depthwise
# convolutions make a tenth of the range of a single one.
OTHER_CODES_TOLERANCE = 0.15


def tolerance(*dtypes: str) -> float:
    """How far results of these dtypes may be off, relative to the range of the reference."""
    return max((_TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes), default=TOLERANCE)


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from its reference.

    `absolute` is the largest deviation, `relative` the same divided by the range
    (maximum - minimum) of the reference; both are infinite where the two cannot be
    compared, and `detail` then says why.
    """

    name: str
    absolute: float
    relative: float
    tolerance: float
    detail: str = ""

    @property
    def agrees(self) -> bool:
        return not self.detail and self.relative <= self.tolerance

    @property
    def told(self) -> str:
        """The deviation in words."""
        return self.detail or f"off by {self.relative:.1e} of its range"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON (an infinite deviation is null)."""
        return {
            "tensor": self.name,
            "absolute": self.absolute if np.isfinite(self.absolute) else None,
            "relative": self.relative if np.isfinite(self.relative) else None,
            "tolerance": self.tolerance,
            "agrees": self.agrees,
            "detail": self.detail,
        }


def compare(
    name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE
) -> Difference:
    """Compare a tensor with its reference.

    Shapes and kinds of dtype must be the same. Integers and booleans must be equal, but for
    integers of 8 bits, which are taken for codes of numbers; infinities and NaNs must stand
    in the same places.
    """

    def incomparable(detail: str) -> Difference:
        return Difference(name, float("inf"), float("inf"), tolerance, detail)

    if actual.shape != expected.shape:
        return incomparable(f"shape {actual.shape} instead of {expected.shape}")
    if _kind(actual) != _kind(expected):
        return incomparable(f"dtype {actual.dtype} instead of {expected.dtype}")
    if expected.size == 0:
        return Difference(name, 0.0, 0.0, tolerance)
    if _kind(expected) != "f" and expected.dtype.name not in ("int8", "uint8"):
        wrong = int((actual != expected).sum())
        if wrong:
            return incomparable(f"{wrong} of {expected.size} values differ")
        return Difference(name, 0.0, 0.0, tolerance)
    relative = largest_deviation(actual, expected)
    if not np.isfinite(relative):
        return incomparable("infinities or NaNs stand in different places")
    both = np.isfinite(expected)
    distance = np.abs(actual[both].astype(np.float64) - expected[both].astype(np.float64))
    return Difference(name, float(distance.max(initial=0.0)), relative, tolerance)


def compare_all(
    actual: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> tuple[Difference, ...]:
    """One Difference for each expected tensor; one that is not there does not agree."""
    result = []
    for name, reference in expected.items():
        if name in actual:
            result.append(compare(name, actual[name], reference, tolerance))
        else:
            infinity = float("inf")
            result.append(Difference(name, infinity, infinity, tolerance, "missing"))
    return tuple(result)


def _kind(array: np.ndarray) -> str:
    """`f` for floats (ml_dtypes' among them), `i` for integers, `b` for booleans."""
    kind = array.dtype.kind
    return {"u": "i", "V": "f"}.get(kind, kind)
