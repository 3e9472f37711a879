"""Tensors of TVM's runtime as arrays and back, for what the VM form evaluates in Python.

TVM's own conversions take 10 microseconds and more, longer than most of what lies between them;
sharing memory by DLPack takes less than one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

# Kernels load whole vectors: TVM allocates at such addresses, numpy does not.
_ALIGNMENT = 64
# The kinds of dtypes that numpy exchanges; bfloat16 is none of its own.
_SHARED = "fiub"


def array_of(value: Any) -> Any:
    """A tensor as an array that shares its memory, a sequence as a list of arrays."""
    if isinstance(value, tvm_ffi.Tensor):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError):  # a dtype that numpy does not know
            return value.numpy()
    return [array_of(item) for item in value]


def tensor_of(value: Any) -> Any:
    """An array as a tensor with memory of its own, a list of arrays as a list of tensors."""
    if isinstance(value, list | tuple):
        return [tensor_of(item) for item in value]
    array = np.asarray(value)
    # TVM and numpy stride what has no elements differently.
    if array.dtype.kind not in _SHARED or not array.size:
        import tvm

        return tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape))
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    begin = -room.__array_interface__["data"][0] % _ALIGNMENT
    copied = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return tvm_ffi.from_dlpack(copied)
