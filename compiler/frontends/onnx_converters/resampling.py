"""Resize in all modes of the standard.

TVM's operator serves what it gets right (two spatial axes, nearest or linear, sizes that
are the scale times the input). Everything else goes axis by axis: nearest neighbours are
picked by index, the other modes multiply with a constant matrix of interpolation weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    static_shape,
)
from compiler.frontends.onnx_converters.selection import integers, take

_SERVED_MODES = ("nearest", "linear")
_SERVED_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


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
    return _positions(size, output, np.float32(scale), how).astype(np.float64)


def _positions(size: int, output: int, scale: np.float32, how: Sampling) -> np.ndarray:
    index = np.arange(output, dtype=np.float32)
    half, extent = np.float32(0.5), np.float32(size)
    if how.coordinates == "half_pixel":
        return (index + half) / scale - half
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


class Resize(OnnxOpConverter):
    """Resampling to given sizes or by given scales."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        options = {**attr, "coordinate_transformation_mode": b"asymmetric"}
        options["nearest_mode"] = b"floor"
        return _resize(bb, inputs[0], None, inputs[1], None, options, params)

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _resize(bb, inputs[0], inputs[1], inputs[2], inputs[3], attr, params)


class Upsample(OnnxOpConverter):
    """What Resize was called before version 10."""

    @classmethod
    def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        scales = constant(np.array(attr["scales"], np.float32))
        return Resize._impl_v10(bb, [inputs[0], scales], attr, params)

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return Resize._impl_v10(bb, inputs, attr, params)


def _resize(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    roi: relax.Expr | None,
    scales: relax.Expr | None,
    sizes: relax.Expr | None,
    attr: Any,
    params: Any,
) -> relax.Expr:
    shape = static_shape(x)
    axes = [axis % len(shape) for axis in attr.get("axes", range(len(shape)))]
    scale, output = _scales_and_sizes(shape, axes, scales, sizes, attr)
    how = Sampling(
        mode=attr.get("mode", b"nearest").decode(),
        coordinates=attr.get("coordinate_transformation_mode", b"half_pixel").decode(),
        rounding=attr.get("nearest_mode", b"round_prefer_floor").decode(),
        cubic=attr.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(attr.get("exclude_outside", 0)),
        antialias=bool(attr.get("antialias", 0)),
        extrapolation=attr.get("extrapolation_value", 0.0),
    )
    if list(shape) == output and how.coordinates != "tf_crop_and_resize":
        # Whatever the scales are that come to the same size, as in ONNX Runtime.
        return x
    if _served(dtype_of(x), shape, output, scale, how):
        plain = {
            key: attr[key]
            for key in ("mode", "coordinate_transformation_mode", "nearest_mode")
            if key in attr
        }
        sizes = constant(np.array(output, np.int64))
        return onnx_frontend.Resize._impl_v18(bb, [x, None, None, sizes], plain, params)
    region = as_numpy(roi)
    dtype = dtype_of(x)
    weighted = how.mode != "nearest" and not dtype.startswith(("float", "bfloat"))
    if weighted:
        # Fractions of integers; what is between two of them is cut off at the end.
        x = bb.emit(relax.op.astype(x, "float32"))
    resized = [axis for axis in axes if shape[axis] != output[axis] or scale[axis] != 1.0]
    simple = not how.antialias and not how.exclude_outside
    within = how.coordinates != "tf_crop_and_resize" and resized == [2, 3] and len(shape) == 4
    if weighted and how.mode == "linear" and simple and within:
        return _as_integers(bb, _between_four(bb, x, output, scale, how), dtype)
    # Rounding between the axes makes their order count: rows first, as everybody does.
    turns = list(enumerate(axes))
    for position, axis in reversed(turns) if weighted and how.antialias else turns:
        if how.coordinates == "tf_crop_and_resize":
            if region is None:
                raise ValueError("the region to crop depends on data")
            start, end = float(region[position]), float(region[position + len(axes)])
            how = replace(how, start=start, end=end)
        elif shape[axis] == output[axis] and scale[axis] == 1.0:
            continue
        x = bb.emit(_resample(bb, x, axis, output[axis], scale[axis], how))
        if weighted and how.antialias:
            x = bb.emit(_within(bb, _halves_away_from_zero(bb, x), dtype))
    return _as_integers(bb, x, dtype) if weighted else x


def _between_four(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    output: Sequence[int],
    scale: Sequence[float],
    how: Sampling,
) -> relax.Expr:
    """The last two axes of `x: (n, c, h, w)`, each result summed of its four neighbours.

    The sum has the order and the precision of ONNX Runtime's, for integers are cut off behind it:
    one bit less, and a whole number becomes the one below.
    """
    shape = static_shape(x)
    neighbours, parts = [], []
    for axis in (2, 3):
        last = shape[axis] - 1
        where = _positions(shape[axis], output[axis], np.float32(scale[axis]), how)
        where = np.clip(where, 0, np.float32(last)).astype(np.float32)
        first = np.minimum(where.astype(np.int64), last)
        second = np.minimum(first + 1, last)
        near, far = np.abs(where - second), np.abs(where - first)
        same = first == second
        neighbours.append((first, second))
        parts.append([np.where(same, np.float32(0.5), part) for part in (near, far)])
    total: relax.Expr | None = None
    for row in (0, 1):
        rows = take(bb, x, neighbours[0][row], 2)
        for column in (0, 1):
            weight = parts[1][column][None, :] * parts[0][row][:, None]
            entries = take(bb, rows, neighbours[1][column], 3)
            term = bb.emit(relax.op.multiply(entries, constant(weight.astype(np.float32))))
            total = term if total is None else bb.emit(relax.op.add(total, term))
    return total


def _as_integers(bb: relax.BlockBuilder, x: relax.Expr, dtype: str) -> relax.Expr:
    """`x` without its fractions, within the limits of `dtype`, which cubic weights overshoot."""
    return bb.emit(relax.op.astype(_within(bb, x, dtype), dtype))


def _halves_away_from_zero(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    half, zero = relax.const(0.5, "float32"), relax.const(0.0, "float32")
    up = relax.op.floor(relax.op.add(x, half))
    down = relax.op.ceil(relax.op.subtract(x, half))
    return bb.emit(relax.op.where(relax.op.less(x, zero), down, up))


def _within(bb: relax.BlockBuilder, x: relax.Expr, dtype: str) -> relax.Expr:
    limits = np.iinfo(dtype)
    if limits.bits > 16:
        return x
    return bb.emit(relax.op.clip(x, float(limits.min), float(limits.max)))


def _resample(
    bb: relax.BlockBuilder, x: relax.Expr, axis: int, output: int, scale: float, how: Sampling
) -> relax.Expr:
    shape = static_shape(x)
    size = shape[axis]
    where = positions(size, output, scale, how)
    if how.mode == "nearest":
        index = nearest(where, how.rounding)
        x = take(bb, x, np.clip(index, 0, size - 1), axis)
    else:
        matrix = constant(interpolation_matrix(size, output, scale, how).astype(dtype_of(x)))
        order = [*(i for i in range(len(shape)) if i != axis), axis]
        back = [order.index(i) for i in range(len(shape))]
        moved = bb.emit(relax.op.permute_dims(x, order))
        product = bb.emit(relax.op.matmul(moved, matrix))
        x = bb.emit(relax.op.permute_dims(product, back))
    if how.coordinates != "tf_crop_and_resize":
        return x
    outside = (where < 0) | (where > size - 1)
    if not outside.any():
        return x
    mask = constant(outside.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return relax.op.where(mask, relax.const(how.extrapolation, dtype_of(x)), x)


def _scales_and_sizes(
    shape: Sequence[int],
    axes: Sequence[int],
    scales: relax.Expr | None,
    sizes: relax.Expr | None,
    attr: Any,
) -> tuple[list[float], list[int]]:
    """Scale and output size of every axis; only `axes` are mentioned by the operands."""
    scale, output = [1.0] * len(shape), list(shape)
    wanted = integers(sizes, "the sizes")
    if wanted:
        ratios = [size / shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = attr.get("keep_aspect_ratio_policy", b"stretch")
        if policy != b"stretch":
            ratio = min(ratios) if policy == b"not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            # Halves are rounded up.
            wanted = [math.floor(ratio * shape[axis] + 0.5) for axis in axes]
        for axis, ratio, size in zip(axes, ratios, wanted, strict=True):
            scale[axis], output[axis] = ratio, size
        return scale, output
    factors = as_numpy(scales)
    if factors is None or not factors.size:
        raise ValueError("neither scales nor sizes are known")
    for axis, factor in zip(axes, factors.reshape(-1), strict=True):
        scale[axis] = float(factor)
        # In single precision, as the standard's own arithmetic is.
        output[axis] = math.floor(np.float32(shape[axis]) * np.float32(factor))
    return scale, output


def _served(
    dtype: str,
    shape: Sequence[int],
    output: Sequence[int],
    scale: Sequence[float],
    how: Sampling,
) -> bool:
    """Whether TVM's own operator computes this correctly."""
    return (
        len(shape) == 4
        and list(shape[:2]) == list(output[:2])
        and how.mode in _SERVED_MODES
        and how.coordinates in _SERVED_COORDINATES
        and not how.antialias
        and not how.exclude_outside
        and dtype == "float32"
        and min(output[2:]) > 1
        and all(
            abs(size * factor - wanted) < 1e-4
            for size, factor, wanted in zip(shape, scale, output, strict=True)
        )
    )
