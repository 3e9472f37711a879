"""Shapes, dtypes and sizes of the buffers that are a kernel's parameters."""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm.tirx import PrimFunc, Var


def is_static(parameter: Var) -> bool:
    shape = getattr(parameter.ty, "shape", None)
    return shape is not None and all(isinstance(extent, tirx.IntImm) for extent in shape)


def buffer_shape(buffer: Var) -> tuple[int, ...]:
    """The static shape of a buffer."""
    return tuple(int(extent) for extent in buffer.ty.shape)


def buffer_size(buffer: Var) -> int:
    """Number of elements of a buffer."""
    return math.prod(buffer_shape(buffer))


def buffer_dtype(buffer: Var) -> str:
    """The element type of a buffer."""
    return str(buffer.ty.dtype)


def element_bytes(buffer: Var) -> int:
    """Bytes of one element (a bool takes one)."""
    return max(1, tvm.DataType(buffer_dtype(buffer)).bits // 8)


def static_bytes(function: PrimFunc) -> int:
    """Bytes of all parameters whose shapes are static."""
    buffers = [p for p in function.params if is_static(p)]
    return sum(buffer_size(b) * element_bytes(b) for b in buffers)
