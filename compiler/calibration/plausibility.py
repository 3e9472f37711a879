"""Data that cannot be what a model expects: all zero, constant, or scaled absurdly."""

from __future__ import annotations

import numpy as np

from tinsmith.compiler.calibration.source import CalibrationSource

# Enough to tell; all would be read twice.
_LOOKED_AT = 8
# Inputs of networks are of the order of 1, or of 255: beyond these something is off.
_LARGEST, _SMALLEST = 1e4, 1e-4


def warnings(source: CalibrationSource) -> tuple[str, ...]:
    """A line for each input of floats whose first samples look wrong; none for others."""
    seen: dict[str, list[np.ndarray]] = {}
    for index, sample in enumerate(source):
        if index == _LOOKED_AT:
            break
        for name, array in sample.items():
            if array.dtype.kind == "f" and array.size > 1:
                seen.setdefault(name, []).append(np.array(array, np.float32))
    told = []
    for name, arrays in seen.items():
        reason = _implausible(arrays)
        if reason:
            told.append(
                f"warning: {source.label}: input {name} {reason}; what was learned from such data "
                "is of little use: check --mean, --std and --pixel-range"
            )
    return tuple(told)


def _implausible(arrays: list[np.ndarray]) -> str:
    largest = max(float(np.abs(array).max()) for array in arrays)
    if largest == 0:
        return "is zero in all samples"
    if all(float(np.ptp(array)) == 0 for array in arrays):
        return "is constant in every sample"
    if len(arrays) > 1 and all(np.array_equal(array, arrays[0]) for array in arrays[1:]):
        return "is the same in all samples"
    if largest > _LARGEST:
        return f"reaches {largest:.3g}"
    if largest < _SMALLEST:
        return f"is never larger than {largest:.3g}"
    return ""
