"""Calls of `relax.quantize` and `relax.dequantize`, made and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import constant_array, element_type, operator_name
from tinsmith.targets.number_formats import NumberFormats


@dataclass(frozen=True, eq=False)
class Parameters:
    """What integers of `dtype` mean: `(q - zero_point) * scale`.

    Scale (float32) and zero point are numbers, or vectors along `axis` of the tensor.
    """

    scale: float | np.ndarray
    zero_point: int | np.ndarray
    dtype: str
    axis: int = -1

    @property
    def per_tensor(self) -> bool:
        """Whether one scale and zero point hold for all elements."""
        return np.ndim(self.scale) == 0 and np.ndim(self.zero_point) == 0

    def __eq__(self, other: object) -> bool:
        """Whether the same integers mean the same values, to the last bit."""
        if not isinstance(other, Parameters) or self.dtype != other.dtype:
            return False
        if not self.per_tensor and self.axis != other.axis:
            return False
        return np.array_equal(np.float32(self.scale), np.float32(other.scale)) and np.array_equal(
            self.zero_point, other.zero_point
        )

    def __hash__(self) -> int:
        return hash((np.float32(self.scale).tobytes(), self.dtype))


def _constants(parameters: Parameters) -> tuple[relax.Expr, relax.Expr]:
    scale = np.asarray(parameters.scale, np.float32)
    zero_point = np.asarray(parameters.zero_point, np.int32)
    return relax.const(scale, "float32"), relax.const(
        np.broadcast_to(zero_point, scale.shape).copy() if scale.ndim else zero_point, "int32"
    )


def quantize_call(value: relax.Expr, parameters: Parameters, axis: int = -1) -> relax.Expr:
    """`quantize(value)` to integers of the parameters' dtype."""
    return relax.op.quantize(value, *_constants(parameters), axis, parameters.dtype)


def dequantize_call(value: relax.Expr, parameters: Parameters, axis: int = -1) -> relax.Expr:
    """`dequantize(value)` to float32."""
    return relax.op.dequantize(value, *_constants(parameters), axis, "float32")


def moves_elements(call: Any, table: NumberFormats) -> bool:
    """Whether every element of the result is one of the operand, so that integers may be moved."""
    if operator_name(call) == "relax.image.resize2d":
        return str(call.attrs.method) == "nearest_neighbor"
    return operator_name(call) in table.same_scale


def parameters_of(call: Any) -> Parameters | None:
    """The parameters of a `quantize` or `dequantize` call with constant scales, else None.

    Vectors of one element count as numbers, and an axis is counted from the front.
    """
    name = operator_name(call)
    if name not in ("relax.quantize", "relax.dequantize"):
        return None
    scale, zero_point = constant_array(call.args[1]), constant_array(call.args[2])
    if scale is None or zero_point is None:
        return None
    dtype = element_type(call if name == "relax.quantize" else call.args[0])
    if dtype is None:
        return None
    axis = int(call.attrs.axis)
    rank = call.ty.ndim
    axis = axis + rank if axis < 0 else axis
    if scale.size == 1 and zero_point.size == 1:
        return Parameters(float(scale.reshape(())), int(zero_point.reshape(())), dtype)
    size = max(scale.size, zero_point.size)
    wide_scale = np.broadcast_to(scale.reshape(-1), (size,)).astype(np.float32)
    wide_zero = np.broadcast_to(zero_point.reshape(-1), (size,)).astype(np.int32)
    return Parameters(wide_scale, wide_zero, dtype, axis)
