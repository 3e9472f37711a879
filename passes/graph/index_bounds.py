"""Between which numbers the elements of an integer tensor lie, as far as the graph tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import constant_array, element_type, operator_name, static_shape

Range = tuple[int, int]
Definition = Callable[[relax.Expr], Any]

# What moves elements, and leaves them what they are.
_MOVES = frozenset(
    f"relax.{name}"
    for name in (
        "broadcast_to",
        "expand_dims",
        "flatten",
        "flip",
        "gather_elements",
        "gather_nd",
        "permute_dims",
        "repeat",
        "reshape",
        "squeeze",
        "strided_slice",
        "take",
        "tile",
    )
)
_DEPTH = 32


def integer_range(expr: relax.Expr, definition: Definition, depth: int = _DEPTH) -> Range | None:
    """The smallest and largest value that `expr` may have; None if unknown.

    `definition` answers the value that a variable is bound to, or None. Known are positions of
    maxima, clipped values, constants, what is moved, converted, chosen and added of them, and
    integers of few bits.
    """
    array = constant_array(expr)
    if array is not None:
        if array.dtype.kind not in "iub" or not array.size:
            return None
        return int(array.min()), int(array.max())
    found = _computed_range(definition(expr), definition, depth) if depth else None
    limits = _dtype_range(element_type(expr))
    if found is None or limits is None:
        return limits
    # Sums that leave the dtype wrap around.
    return found if limits[0] <= found[0] and found[1] <= limits[1] else limits


def _computed_range(value: Any, definition: Definition, depth: int) -> Range | None:
    if isinstance(value, relax.Var):
        return integer_range(value, definition, depth - 1)
    name = operator_name(value)
    if name is None:
        return None

    def of(position: int) -> Range | None:
        return integer_range(value.args[position], definition, depth - 1)

    if name in ("relax.argmax", "relax.argmin"):
        return _positions(value)
    if name in _MOVES:
        return of(0)
    if name == "relax.astype":
        return (
            of(0) if str(element_type(value.args[0])).startswith(("int", "uint", "bool")) else None
        )
    if name == "relax.clip":
        low, high = (int(bound.value) for bound in value.args[1:3])
        return low, high
    if name == "relax.concat":
        fields = getattr(value.args[0], "fields", None)
        parts = [integer_range(field, definition, depth - 1) for field in fields or ()]
        return _union(parts)
    if name == "relax.where":
        return _union([of(1), of(2)])
    if name in ("relax.add", "relax.subtract", "relax.minimum", "relax.maximum"):
        left, right = of(0), of(1)
        if left is None or right is None:
            return None
        return _COMBINED[name](left, right)
    return None


_COMBINED: dict[str, Callable[[Range, Range], Range]] = {
    "relax.add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "relax.subtract": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "relax.minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "relax.maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
}


def _positions(call: relax.Call) -> Range | None:
    shape = static_shape(call.args[0])
    if shape is None:
        return None
    axis = call.attrs.axis
    extent = int(np.prod(shape)) if axis is None else shape[int(axis)]
    return (0, extent - 1) if extent else None


def _union(parts: list[Range | None]) -> Range | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _dtype_range(dtype: str | None) -> Range | None:
    if dtype == "bool":
        return 0, 1
    if dtype is None or not dtype.startswith(("int", "uint")):
        return None
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
