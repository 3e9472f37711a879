"""Where the entries of a resampled axis lie, and how they are mixed. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How one axis is resampled: the operator's attributes, and start and end of the crop."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float
    start: float = 0.0
    end: float = 1.0


def positions(size: int, output: int, scale: float, how: Sampling) -> np.ndarray:
    """Where each output entry lies in the input, in entries, float64.

    Computed in single precision, as ONNX Runtime and the standard's own evaluator do: which of
    two neighbours is the nearest hangs on the last bit.
    """
    return single_positions(size, output, np.float32(scale), how).astype(np.float64)


def single_positions(size: int, output: int, scale: np.float32, how: Sampling) -> np.ndarray:
    """The same in float32."""
    index = np.arange(output, dtype=np.float32)
    half, extent = np.float32(0.5), np.float32(size)
    if how.coordinates == "half_pixel":
        return (index + half) / scale - half
    if how.coordinates == "tf_half_pixel_for_nn":
        return (index + half) / scale
    if how.coordinates == "pytorch_half_pixel":
        return (index + half) / scale - half if output > 1 else np.zeros(1, np.float32)
    if how.coordinates == "half_pixel_symmetric":
        # The part that rounding cut off or added is shared out between both ends.
        adjustment = np.float32(output) / (scale * extent)
        return extent * half * (1 - adjustment) + (index + half) / scale - half
    if how.coordinates == "align_corners":
        length = scale * extent
        return index * (extent - 1) / (length - 1) if length > 1 else np.zeros(output, np.float32)
    if how.coordinates == "asymmetric":
        return index / scale
    if how.coordinates == "tf_crop_and_resize":
        start, end = np.float32(how.start), np.float32(how.end)
        if output == 1:
            return np.full(1, half * (start + end) * (extent - 1))
        span = (end - start) * (extent - 1) / np.float32(output - 1)
        return start * (extent - 1) + index * span
    raise ValueError(f"unknown coordinate transformation {how.coordinates!r}")


def nearest(position: np.ndarray, rounding: str) -> np.ndarray:
    """`position` rounded to integers."""
    if rounding == "round_prefer_floor":
        rounded = np.ceil(position - 0.5)
    elif rounding == "round_prefer_ceil":
        rounded = np.floor(position + 0.5)
    elif rounding == "floor":
        rounded = np.floor(position)
    elif rounding == "ceil":
        rounded = np.ceil(position)
    else:
        raise ValueError(f"unknown rounding {rounding!r}")
    return rounded.astype(np.int64)


def weights(position: float, scale: float, how: Sampling) -> tuple[int, np.ndarray]:
    """The first input entry that contributes at `position`, and the weights from there on."""
    stretch = min(scale, 1.0) if how.antialias else 1.0
    radius = (1.0 if how.mode == "linear" else 2.0) / stretch
    first = math.floor(position - radius) + 1
    distance = np.abs(np.arange(first, math.ceil(position + radius)) - position) * stretch
    if how.mode == "linear":
        values = np.maximum(1.0 - distance, 0.0)
    else:
        values = _cubic(distance, how.cubic)
    if how.antialias:
        values = values / values.sum()
    return first, values


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE TASSP 29(6), 1981, equation 15) with parameter a."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def interpolation_matrix(size: int, output: int, scale: float, how: Sampling) -> np.ndarray:
    """The matrix (size, output) by which a row of `size` entries is resampled, float64."""
    matrix = np.zeros((size, output))
    for column, position in enumerate(positions(size, output, scale, how)):
        first, values = weights(float(position), scale, how)
        entries = np.arange(first, first + len(values))
        if how.exclude_outside:
            values = np.where((entries >= 0) & (entries < size), values, 0.0)
            values = values / values.sum()
        # Beyond the border, the border entry repeats.
        np.add.at(matrix[:, column], np.clip(entries, 0, size - 1), values)
    return matrix


def sampling(attributes: Mapping[str, Any]) -> Sampling:
    """The attributes of an ONNX Resize, as far as they say how an axis is sampled."""

    def text(name: str, default: str) -> str:
        given = attributes.get(name, default)
        return given.decode() if isinstance(given, bytes) else str(given)

    return Sampling(
        mode=text("mode", "nearest"),
        coordinates=text("coordinate_transformation_mode", "half_pixel"),
        rounding=text("nearest_mode", "round_prefer_floor"),
        cubic=attributes.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(attributes.get("exclude_outside", 0)),
        antialias=bool(attributes.get("antialias", 0)),
        extrapolation=attributes.get("extrapolation_value", 0.0),
    )


def scales_and_sizes(
    shape: Sequence[int],
    axes: Sequence[int],
    scales: Sequence[float],
    sizes: Sequence[int],
    policy: str = "stretch",
) -> tuple[list[float], list[int]]:
    """Scale and output size of every axis of `shape`; only `axes` are mentioned by the operands.

    One of `scales` and `sizes` is empty; `policy` is the operator's for the aspect ratio.
    """
    scale, output = [1.0] * len(shape), list(shape)
    if len(sizes):
        wanted = [int(size) for size in sizes]
        ratios = [size / shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            # Halves are rounded up.
            wanted = [math.floor(ratio * shape[axis] + 0.5) for axis in axes]
        for axis, ratio, size in zip(axes, ratios, wanted, strict=True):
            scale[axis], output[axis] = ratio, size
        return scale, output
    for axis, factor in zip(axes, scales, strict=True):
        scale[axis] = float(factor)
        # In single precision, as the standard's own arithmetic is.
        output[axis] = math.floor(np.float32(shape[axis]) * np.float32(factor))
    return scale, output


def resized(
    x: np.ndarray, scale: Sequence[float], output: Sequence[int], how: Sampling
) -> np.ndarray:
    """A float `x` resampled axis by axis to the extents `output`; crops are not supported."""
    for axis, (size, wanted, factor) in enumerate(zip(x.shape, output, scale, strict=True)):
        if size == wanted and (factor == 1.0 or list(x.shape) == list(output)):
            continue
        if how.mode == "nearest":
            index = nearest(positions(size, wanted, factor, how), how.rounding)
            x = np.take(x, np.clip(index, 0, size - 1), axis)
            continue
        matrix = interpolation_matrix(size, wanted, factor, how).astype(x.dtype)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix, -1, axis)
    return np.ascontiguousarray(x)
