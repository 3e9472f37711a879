"""Reading Relax expressions: operator names, static shapes, constant values.

Every function answers None (or an empty value) instead of raising when the
expression is not of the kind asked about, so that a pass can ask first and
leave alone what it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx
from tvm.ir import GenericConst, Op

_NUMPY_DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def operator_name(expr: relax.Expr | None) -> str | None:
    """`"relax.add"` for a call of that operator; None for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, Op):
        return str(expr.op.name)
    return None


def static_shape(expr: relax.Expr) -> tuple[int, ...] | None:
    """The shape of a tensor expression, or None if it is no tensor or any extent is symbolic."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    return shape_values(ty.shape)


def shape_values(shape: relax.ShapeExpr) -> tuple[int, ...] | None:
    """The extents of a shape expression, or None if any is symbolic."""
    if not all(isinstance(extent, tirx.IntImm) for extent in shape.values):
        return None
    return tuple(int(extent) for extent in shape.values)


def element_type(expr: relax.Expr) -> str | None:
    """The dtype of a tensor expression (`"float32"`), or None if unknown."""
    ty = expr.ty
    return str(ty.dtype) if isinstance(ty, relax.TensorType) else None


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of `shape`; 1 for a scalar."""
    return int(np.prod(shape, dtype=np.int64)) if len(shape) else 1


def constant_array(expr: relax.Expr | None) -> np.ndarray | None:
    """The value of a constant tensor of a dtype numpy knows, else None."""
    if not isinstance(expr, GenericConst) or element_type(expr) not in _NUMPY_DTYPES:
        return None
    return np.asarray(expr.value.numpy())


def constant_scalar(expr: relax.Expr | None) -> float | None:
    """The value of a constant with one element (of any rank), else None."""
    array = constant_array(expr)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def constant(array: np.ndarray) -> GenericConst:
    """A Relax constant of the array's own shape and dtype."""
    # ascontiguousarray turns a scalar into a vector of one, hence the reshape.
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def integers(values: Sequence[object]) -> tuple[int, ...]:
    """Attribute arrays (of IntImm or int) as plain integers."""
    return tuple(int(value) for value in values)  # type: ignore[call-overload]


def inverse_permutation(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    inverse = [0] * len(axes)
    for position, axis in enumerate(axes):
        inverse[axis] = position
    return tuple(inverse)


def moves_only_unit_axes(shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether permuting a tensor of `shape` by `axes` leaves its elements in order in memory."""
    kept = [axis for axis in axes if shape[axis] != 1]
    return kept == sorted(kept)
