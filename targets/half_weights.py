"""Weights that 16 bits hold exactly: stored so, widened as kernels read them.

What a half-precision file stores is still exactly that after the graph passes, which work in
float32; kernels then multiply the same numbers from half the bytes.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

# Fewer are not worth a conversion.
FEWEST = 1024
_HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# So many are looked at before all of them are.
_SAMPLE = 256


def half_dtype(weights: npt.NDArray[np.generic]) -> str | None:
    """The 16-bit float that holds every element of float32 `weights`, if they are many."""
    if weights.dtype != np.float32 or weights.size < FEWEST:
        return None
    for name in _HALVES:
        flat = weights.reshape(-1)
        every = max(1, flat.size // _SAMPLE)
        if _holds(name, flat[::every]) and _holds(name, flat):
            return name
    return None


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of that name; numpy itself does not know bfloat16."""
    return _HALVES.get(name) or np.dtype(name)


def _holds(name: str, values: npt.NDArray[np.generic]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(_HALVES[name]).astype(np.float32), values))
