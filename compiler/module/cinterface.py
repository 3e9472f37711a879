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

ABI = 1
MAX_THREADS = 256


class TensorStruct(ctypes.Structure):
    """`tinsmith_tensor`."""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_char_p),
        ("shape", POINTER(c_int64)),
        ("ndim", c_int32),
        ("reserved", c_int32),
        ("nbytes", c_uint64),
    )


class ModuleStruct(ctypes.Structure):
    """`tinsmith_module`."""

    _fields_ = (
        ("abi", c_uint32),
        ("weights_embedded", c_uint32),
        ("name", c_char_p),
        ("target", c_char_p),
        ("version", c_char_p),
        ("input_count", c_int32),
        ("output_count", c_int32),
        ("inputs", POINTER(TensorStruct)),
        ("outputs", POINTER(TensorStruct)),
        ("step_count", c_int32),
        ("revision", c_int32),
        ("step_names", POINTER(c_char_p)),
        ("weights_bytes", c_uint64),
        ("arena_bytes", c_uint64),
        ("open", ctypes.CFUNCTYPE(c_int, c_char_p)),
        ("close", ctypes.CFUNCTYPE(None)),
        ("create", ctypes.CFUNCTYPE(c_void_p)),
        ("destroy", ctypes.CFUNCTYPE(None, c_void_p)),
        ("run", ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p), POINTER(c_void_p))),
        (
            "profile",
            ctypes.CFUNCTYPE(
                c_int, c_void_p, POINTER(c_void_p), POINTER(c_void_p), POINTER(c_double)
            ),
        ),
        ("set_threads", ctypes.CFUNCTYPE(c_int, c_int)),
        ("threads", ctypes.CFUNCTYPE(c_int)),
        ("last_error", ctypes.CFUNCTYPE(c_char_p)),
        # From revision 1 on; in a library of revision 0 this is not part of the structure.
        ("set_context_threads", ctypes.CFUNCTYPE(c_int, c_void_p, c_int)),
    )
