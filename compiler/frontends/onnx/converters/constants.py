"""Tensor arithmetic that happens at once when its operands are constants.

Weights are usually constants and have to stay so, for later passes pack them; a
few test models pass them as inputs, and then the same arithmetic goes into the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

# What kernels compute with; narrower integers, 8-bit floats, strings and complex numbers are out.
COMPUTABLE_DTYPES = frozenset(
    {"bool", "bfloat16", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

# Integers of a few bits, and the dtype whose codes hold them. As constants they can be read.
NARROW_INTEGERS = {"int2": "int8", "int4": "int8", "uint2": "uint8", "uint4": "uint8"}


def storable(array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that can be computed with, with the very same values.

    Integers of a few bits become int8 or uint8, floats of 4 and 8 bits float32.
    """
    name = str(array.dtype)
    if name in NARROW_INTEGERS:
        return array.astype(NARROW_INTEGERS[name])
    return array.astype(np.float32) if name.startswith(("float8", "float4")) else array


def constant(array: np.ndarray | np.generic) -> relax.Expr:
    """A constant of exactly the dtype of `array`.

    `relax.const` would make 32-bit values of 64-bit ones, and -1 of the largest integer, which
    ONNX models use as "to the end".
    """
    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape)))


def static_shape(value: relax.Expr) -> tuple[int, ...]:
    """The shape of `value`; ValueError if it is not fixed."""
    shape = value.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or any(
        getattr(dim, "value", None) is None for dim in shape.values
    ):
        raise ValueError(f"needs a fixed shape, not {value.ty}")
    return tuple(int(dim) for dim in shape.values)


def known_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of `value`; None for what is no tensor, or one whose shape is not fixed."""
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        return None
    try:
        return static_shape(value)
    except ValueError:
        return None


def dtype_of(value: relax.Expr) -> str:
    """The dtype of the elements of `value`."""
    return str(value.ty.dtype)


def as_numpy(value: relax.Expr | None) -> np.ndarray | None:
    """The array behind a constant; None for anything else."""
    return value.value.numpy() if isinstance(value, GenericConst) else None


def transpose(bb: relax.BlockBuilder, x: relax.Expr, axes: Sequence[int]) -> relax.Expr:
    """`x` with permuted axes."""
    if isinstance(x, GenericConst):
        return constant(x.value.numpy().transpose(axes))
    return bb.emit(relax.op.permute_dims(x, list(axes)))


def reshape(bb: relax.BlockBuilder, x: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    """`x` in another shape of as many elements."""
    if isinstance(x, GenericConst):
        return constant(x.value.numpy().reshape(shape))
    return bb.emit(relax.op.reshape(x, list(shape)))


def add(bb: relax.BlockBuilder, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    """`x + y`, broadcast."""
    if isinstance(x, GenericConst) and isinstance(y, GenericConst):
        return constant(x.value.numpy() + y.value.numpy())
    return bb.emit(relax.op.add(x, y))


def slice_axis(
    bb: relax.BlockBuilder, x: relax.Expr, axis: int, start: int, stop: int
) -> relax.Expr:
    """`x[..., start:stop, ...]` along `axis`."""
    if isinstance(x, GenericConst):
        array = x.value.numpy()
        index = [slice(None)] * array.ndim
        index[axis] = slice(start, stop)
        return constant(array[tuple(index)])
    return bb.emit(relax.op.strided_slice(x, [axis], [start], [stop]))


def concat(bb: relax.BlockBuilder, parts: Sequence[relax.Expr], axis: int) -> relax.Expr:
    """`parts` joined along `axis`."""
    if all(isinstance(part, GenericConst) for part in parts):
        return constant(np.concatenate([part.value.numpy() for part in parts], axis))
    return bb.emit(relax.op.concat(list(parts), axis=axis))


def zeros(shape: Sequence[int], dtype: str) -> relax.Expr:
    """A constant of zeros."""
    return constant(np.zeros(shape, dtype))
