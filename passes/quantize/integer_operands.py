"""Operands of integer products: 8-bit codes in the dtype of a kernel, and their zero points.

A product of two operands `(x - zx)` and `(w - zw)` over K is taken apart, so that the
kernel multiplies the codes themselves:

    sum (x - zx)(w - zw) = sum x w - zx (sum w - K zw) - zw sum x
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_type,
    operator_name,
    static_shape,
)
from tinsmith.passes.quantize.operators import Parameters, parameters_of

Definition = Callable[[relax.Expr], Any]
Emit = Callable[[relax.Expr], relax.Expr]

_BYTES = frozenset({"int8", "uint8"})
_MOVEMENTS = frozenset({"relax.reshape", "relax.permute_dims"})
_SHIFT = {"uint8": 128, "int8": -128}


@dataclass(frozen=True)
class IntegerOperand:
    """The integers `codes - zero_point`, and the `scale` (per tensor or vector) of their unit.

    `zero_point` is None for zero, an int32 array, or an int32 expression; arrays and
    expressions have one element, or broadcast against the codes. `scale` is None for
    operands that are integers in the graph too; `axis` is that of a vector scale.
    """

    codes: relax.Expr
    zero_point: np.ndarray | relax.Expr | None = None
    scale: float | np.ndarray | None = None
    axis: int = -1

    @property
    def has_one_zero_point(self) -> bool:
        """Whether all codes have the same zero point."""
        if isinstance(self.zero_point, relax.Expr):
            return set(static_shape(self.zero_point) or ()) <= {1}
        return self.zero_point is None or np.size(self.zero_point) == 1

    @property
    def known(self) -> np.ndarray | None:
        """The integers themselves if they are constant."""
        array = constant_array(self.codes)
        if array is None or isinstance(self.zero_point, relax.Expr):
            return None
        array = array.astype(np.int32)
        return array if self.zero_point is None else array - self.zero_point


def integer_operand(expr: relax.Expr, definition: Definition, emit: Emit) -> IntegerOperand | None:
    """What `expr` is as an operand; None if it is not made of 8-bit codes.

    Known are `dequantize` with constant parameters, `astype(codes, int32)` with or without a
    zero point subtracted, reshaped or permuted perhaps, and int32 constants.
    """
    call = definition(expr)
    parameters = parameters_of(call) if operator_name(call) == "relax.dequantize" else None
    if parameters is not None:
        return _of_dequantize(call, parameters)
    if element_type(expr) != "int32":
        return None
    if constant_array(expr) is not None:
        return IntegerOperand(expr)
    if operator_name(call) in _MOVEMENTS:
        inner = integer_operand(call.args[0], definition, emit)
        if inner is None or not inner.has_one_zero_point:
            return None
        moved = relax.Call(call.op, [inner.codes, *call.args[1:]], call.attrs, call.ty_args)
        return IntegerOperand(emit(moved), _as_scalar(inner.zero_point, emit))
    zero_point: np.ndarray | relax.Expr | None = None
    if operator_name(call) == "relax.subtract":
        offset = call.args[1]
        known = constant_array(offset)
        zero_point = offset if known is None else known
        call = definition(call.args[0])
    if operator_name(call) != "relax.astype" or element_type(call.args[0]) not in _BYTES:
        return None
    return IntegerOperand(call.args[0], zero_point)


def _as_scalar(
    zero_point: np.ndarray | relax.Expr | None, emit: Emit
) -> np.ndarray | relax.Expr | None:
    """A zero point of one element as a tensor without axes."""
    if zero_point is None:
        return None
    if isinstance(zero_point, np.ndarray):
        return zero_point.reshape(())
    return emit(relax.op.reshape(zero_point, ()))


def _of_dequantize(call: Any, parameters: Parameters) -> IntegerOperand | None:
    if parameters.dtype not in _BYTES:
        return None
    zero_point = np.asarray(parameters.zero_point, np.int32)
    if zero_point.ndim:
        shape = [1] * call.ty.ndim
        shape[parameters.axis] = zero_point.size
        zero_point = zero_point.reshape(shape)
    return IntegerOperand(
        call.args[0],
        zero_point if zero_point.any() else None,
        parameters.scale,
        parameters.axis,
    )


def with_dtype(
    operand: IntegerOperand, dtype: str, emit: Emit, *, by_column: bool = False
) -> IntegerOperand | None:
    """The same integers as codes of `dtype` (int8 or uint8); None if they do not fit.

    Constants get the zero point that is needed to hold them, by columns (indices of the last
    axis) on request. Other codes are shifted by 128 at run time.
    """
    known = operand.known
    if known is not None:
        return _packed(operand, known, dtype, by_column)
    if element_type(operand.codes) == dtype:
        return operand
    shift = constant(np.asarray(_SHIFT[dtype], np.int32))
    wide = emit(relax.op.astype(operand.codes, "int32"))
    codes = emit(relax.op.astype(emit(relax.op.add(wide, shift)), dtype))
    before = operand.zero_point
    if isinstance(before, relax.Expr):
        return replace(operand, codes=codes, zero_point=emit(relax.op.add(before, shift)))
    # Arithmetic makes a number of an array without axes.
    moved = np.asarray(np.int32(0 if before is None else before) + np.int32(_SHIFT[dtype]))
    return replace(operand, codes=codes, zero_point=moved if np.any(moved) else None)


def _packed(
    operand: IntegerOperand, values: np.ndarray, dtype: str, by_column: bool
) -> IntegerOperand | None:
    limits = np.iinfo(dtype)
    axes = tuple(range(values.ndim - 1)) if by_column else tuple(range(values.ndim))
    low = values.min(axes, initial=0, keepdims=True)
    high = values.max(axes, initial=0, keepdims=True)
    if (high - low > limits.max - limits.min).any():
        return None
    # Zero where the values fit as they are: most weights are symmetric.
    offset = np.clip(0, high - limits.max, low - limits.min).astype(np.int32)
    codes = constant((values - offset).astype(dtype))
    return replace(operand, codes=codes, zero_point=-offset if offset.any() else None)
