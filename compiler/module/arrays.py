"""Whatever holds numbers as a numpy array that a module reads in place, or fills.

Arrays, tensors of other libraries (`__dlpack__`, `__array__`), numbers and nested lists of them
are taken. What cannot be read in place is copied: lists, arrays that are not contiguous or in
another byte order, and dtypes of which every value is kept (int32 for int64, bool for float32),
is rounded (float64 for float32) or is found to fit (int64 for uint8).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tinsmith.compiler.errors import InputError

# DLPack's numbers of memory that a CPU reads: its own, and what is pinned for a GPU.
_READABLE = frozenset({1, 3})


def as_input(what: str, value: Any, dtype: np.dtype, element: str, strict: bool) -> np.ndarray:
    """`value` as a contiguous array of `dtype`, which carries elements of the type `element`.

    `strict` refuses what would have to be copied. Raises `InputError`, which begins with `what`.
    """
    shared = isinstance(value, np.ndarray) or hasattr(value, "__dlpack__")
    array = _shared(what, value) if shared else _collected(what, value)
    if element == "bfloat16" and array.dtype.name == "bfloat16":
        array = array.view(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and shared:
        return array
    if strict:
        if not shared:
            problem = f"expected a numpy array, got {type(value).__name__}"
        elif array.dtype != dtype:
            problem = f"expected dtype {dtype}, got {array.dtype}; convert it first"
        else:
            problem = "the array is not contiguous; use numpy.ascontiguousarray"
        raise InputError(f"{what}: {problem}")
    # numpy makes arrays of no dimension into such of one where it makes them contiguous.
    return np.asarray(_converted(what, array, dtype, element), dtype, order="C")


def as_output(what: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """The array to fill that `value` is, or shares its memory with. Raises `InputError`."""
    if not isinstance(value, np.ndarray) and not hasattr(value, "__dlpack__"):
        raise InputError(
            f"{what}: expected a numpy array or a tensor that shares its memory by DLPack, "
            f"got {type(value).__name__}"
        )
    array = _shared(what, value)
    if dtype == np.uint16 and array.dtype.name == "bfloat16":
        array = array.view(dtype)
    if array.dtype != dtype:
        raise InputError(f"{what}: expected dtype {dtype}, got {array.dtype}")
    if not array.flags.writeable and hasattr(value, "__array__"):
        # Older versions of DLPack do not tell that a tensor may be written into.
        other = np.asarray(value)
        if other.__array_interface__["data"][0] == array.__array_interface__["data"][0]:
            array = other
    if not array.flags.writeable:
        raise InputError(f"{what}: the array is read-only")
    return array


def _shared(what: str, value: Any) -> np.ndarray:
    """The array itself, or one of the memory of a tensor of another library."""
    if isinstance(value, np.ndarray):
        return value
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and int(device()[0]) not in _READABLE:
        raise InputError(
            f"{what}: the tensor lies on another device; copy it to the CPU first "
            "(torch: x.cpu(), JAX: jax.device_get(x))"
        )
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        if hasattr(value, "__array__"):  # of a dtype that DLPack or numpy does not exchange
            return _collected(what, value)
        raise InputError(f"{what}: cannot be read as an array: {error}") from error


def _collected(what: str, value: Any) -> np.ndarray:
    """An array of numbers, lists of them, or an object that makes one of itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries for older numpys
            array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{what}: {type(value).__name__} cannot be read as an array: {error}"
        ) from error
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise InputError(f"{what}: expected a numpy array of numbers, got {type(value).__name__}")
    return array


def _converted(what: str, array: np.ndarray, dtype: np.dtype, element: str) -> np.ndarray:
    """The same numbers in another dtype; `InputError` where they would be others."""
    if array.dtype == dtype:
        return array
    kinds = array.dtype.kind, dtype.kind
    wide = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if element == "bfloat16":
        if wide.dtype.kind != "f":
            raise InputError(
                f"{what}: expected bfloat16 as uint16 bits, or floats, got {array.dtype}; "
                "convert it first"
            )
        return _bfloat16_bits(wide)
    if not wide.size and kinds[0] != "c":
        return wide.astype(dtype)
    if kinds[0] in "iu" and kinds[1] in "iu":
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            outside = low if low < limits.min else high
            raise InputError(f"{what}: {outside} does not fit into {dtype}")
        return array.astype(dtype)
    if not np.can_cast(wide.dtype, dtype, "same_kind"):
        raise InputError(f"{what}: expected dtype {dtype}, got {array.dtype}; convert it first")
    try:
        with np.errstate(over="raise"):
            return wide.astype(dtype)
    except FloatingPointError as error:
        raise InputError(f"{what}: has numbers that do not fit into {dtype}") from error


def _bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).reshape(array.shape).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype(np.uint16)
