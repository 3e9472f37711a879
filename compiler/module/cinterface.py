"""The C structures of runtime/tinsmith.h for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)

ABI = 2
MAX_THREADS = 256

_Pointers = POINTER(c_void_p)
_Sizes = POINTER(c_int64)


class AxisStruct(ctypes.Structure):
    """`tinsmith_axis`."""

    _fields_ = (("dim", c_int32), ("factor", c_int64))


class DimensionStruct(ctypes.Structure):
    """`tinsmith_dim`."""

    _fields_ = (("name", c_char_p), ("low", c_int64), ("high", c_int64), ("multiple", c_int64))


_TENSOR_FIELDS = (
    ("name", c_char_p),
    ("dtype", c_char_p),
    ("shape", _Sizes),
    ("ndim", c_int32),
    ("reserved", c_int32),
    ("nbytes", c_uint64),
)


class FixedTensorStruct(ctypes.Structure):
    """`tinsmith_tensor` of interface 1."""

    _fields_ = _TENSOR_FIELDS


class TensorStruct(ctypes.Structure):
    """`tinsmith_tensor`."""

    _fields_ = (*_TENSOR_FIELDS, ("axes", POINTER(AxisStruct)))


def _module_fields(tensor: type, *sizes: type) -> tuple[tuple[str, type], ...]:
    """The fields that all interfaces have; `sizes` are what `run` takes before the tensors."""
    run = (c_int, c_void_p, *sizes, _Pointers, _Pointers)
    return (
        ("abi", c_uint32),
        ("weights_embedded", c_uint32),
        ("name", c_char_p),
        ("target", c_char_p),
        ("version", c_char_p),
        ("input_count", c_int32),
        ("output_count", c_int32),
        ("inputs", POINTER(tensor)),
        ("outputs", POINTER(tensor)),
        ("step_count", c_int32),
        ("revision", c_int32),
        ("step_names", POINTER(c_char_p)),
        ("weights_bytes", c_uint64),
        ("arena_bytes", c_uint64),
        ("open", ctypes.CFUNCTYPE(c_int, c_char_p)),
        ("close", ctypes.CFUNCTYPE(None)),
        ("create", ctypes.CFUNCTYPE(c_void_p)),
        ("destroy", ctypes.CFUNCTYPE(None, c_void_p)),
        ("run", ctypes.CFUNCTYPE(*run)),
        ("profile", ctypes.CFUNCTYPE(*run, POINTER(c_double))),
        ("set_threads", ctypes.CFUNCTYPE(c_int, c_int)),
        ("threads", ctypes.CFUNCTYPE(c_int)),
        ("last_error", ctypes.CFUNCTYPE(c_char_p)),
        # Of interface 1 from revision 1 on; before, this is not part of the structure.
        ("set_context_threads", ctypes.CFUNCTYPE(c_int, c_void_p, c_int)),
    )


class FixedModuleStruct(ctypes.Structure):
    """`tinsmith_module` of interface 1: all shapes are fixed, `run` takes no sizes."""

    _fields_ = _module_fields(FixedTensorStruct)


class ModuleStruct(ctypes.Structure):
    """`tinsmith_module`."""

    _fields_ = (
        *_module_fields(TensorStruct, _Sizes),
        ("dim_count", c_int32),
        ("reserved", c_int32),
        ("dims", POINTER(DimensionStruct)),
    )
