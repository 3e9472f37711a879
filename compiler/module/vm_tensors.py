"""Tensors of TVM's runtime as arrays and back, for what the VM form evaluates in Python.

TVM's own conversions take 10 microseconds and more, longer than most of what lies between them;
sharing memory by DLPack takes less than one.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import tvm_ffi

# Kernels load whole vectors: TVM allocates at such addresses, numpy does not.
_ALIGNMENT = 64
# Tensors up to so many bytes share chunks of memory, each of which lives as long as one of them.
_SMALL = 1 << 9
_CHUNK = 1 << 14
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
    copied = _room(array)
    copied[...] = array
    return tvm_ffi.from_dlpack(copied)


class _Chunk(threading.local):
    """Memory of a thread that small tensors are cut from: what is free of it, from where."""

    def __init__(self) -> None:
        self.memory = _aligned(_CHUNK)
        self.begin = 0


def _room(array: np.ndarray) -> np.ndarray:
    """An array of the same shape and dtype at an address for kernels."""
    nbytes = array.nbytes
    if nbytes > _SMALL:
        return np.ndarray(array.shape, array.dtype, _aligned(nbytes))
    if _CHUNKS.begin + nbytes > _CHUNK:
        _CHUNKS.memory, _CHUNKS.begin = _aligned(_CHUNK), 0
    begin = _CHUNKS.begin
    _CHUNKS.begin = begin + -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return np.ndarray(array.shape, array.dtype, _CHUNKS.memory, begin)


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    return memory[-memory.__array_interface__["data"][0] % _ALIGNMENT :]


_CHUNKS = _Chunk()
