"""What a converter's or TVM's exception says to somebody who only knows the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tvm import relax

# TVM begins with all that it knows of the operator.
_OPERATOR = re.compile(
    r"^In ir\.Op\(.*?name=\"(?:relax\.)?(?P<name>[\w.]+)\".*support_level=\d+\), "
)
_NUMBER = re.compile(r"T\.int64\((-?\d+)\)")
# Python's own words for a shape of another length than a converter takes apart.
_OTHER_RANK = ("values to unpack", "index out of range")


def reason_of(error: Exception, inputs: Iterable[object]) -> str:
    """Why a node with these inputs could not be converted, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if isinstance(error, ValueError | IndexError) and any(sign in reason for sign in _OTHER_RANK):
        told = ", ".join(_shape(value) for value in inputs if value is not None)
        return f"one of its inputs has a number of dimensions that it does not take: {told}"
    return _NUMBER.sub(r"\1", _OPERATOR.sub(r"\g<name>: ", reason))


def _shape(value: object) -> str:
    kind = value.ty if isinstance(value, relax.Expr) else None
    shape = kind.shape if isinstance(kind, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr):
        return "?"
    return str([getattr(extent, "value", "?") for extent in shape.values])
