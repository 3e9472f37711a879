"""Resize in all modes of the standard.

TVM's operator serves what it gets right (two spatial axes, nearest or linear, sizes that
are the scale times the input). Everything else goes axis by axis: nearest neighbours are
picked by index, the other modes multiply with a constant matrix of interpolation weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    static_shape,
)
from tinsmith.compiler.frontends.onnx.converters.selection import integers, take
from tinsmith.compiler.interpolation import (
    Sampling,
    interpolation_matrix,
    nearest,
    positions,
    sampling,
    scales_and_sizes,
    single_positions,
)

_SERVED_MODES = ("nearest", "linear")
_SERVED_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


class GridSample(onnx_frontend.GridSample):
    """Samples of integers are computed in float32, and are integers again."""

    @classmethod
    def _impl_v16(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        dtype = dtype_of(inputs[0])
        if dtype.startswith("float"):
            return super()._impl_v16(bb, inputs, attr, params)
        inputs[0] = bb.emit(relax.op.astype(inputs[0], "float32"))
        sampled = bb.emit(super()._impl_v16(bb, inputs, attr, params))
        return relax.op.astype(sampled, dtype)


class Resize(OnnxOpConverter):
    """Resampling to given sizes or by given scales."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        options = {**attr, "coordinate_transformation_mode": b"asymmetric"}
        options["nearest_mode"] = b"simple"
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
    how = sampling(attr)
    if list(shape) == output and how.coordinates != "tf_crop_and_resize":
        # Whatever the scales are that come to the same size, as in ONNX Runtime.
        return x
    if _served(dtype_of(x), shape, output, scale, how):
        plain = {
            key: attr[key]
            for key in ("mode", "coordinate_transformation_mode", "nearest_mode")
            if key in attr
        }
        if how.rounding == "simple":
            plain["nearest_mode"] = b"floor"
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
        where = single_positions(shape[axis], output[axis], np.float32(scale[axis]), how)
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
        rounding = how.rounding
        if rounding == "simple":
            # Nobody wrote down what version 10 does; this is what ONNX Runtime does.
            rounding = "ceil" if scale < 1 else "floor"
        index = nearest(where, rounding)
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
    wanted = integers(sizes, "the sizes")
    factors = as_numpy(scales)
    if not wanted and (factors is None or not factors.size):
        raise ValueError("neither scales nor sizes are known")
    given = [] if factors is None else factors.reshape(-1).tolist()
    policy = attr.get("keep_aspect_ratio_policy", b"stretch").decode()
    return scales_and_sizes(shape, axes, given, wanted or (), policy)


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
        # Of two neighbours as near as each other it takes the wrong one where the scale is rounded.
        and (how.mode == "linear" or all(_exact(factor) for factor in scale))
        and (how.rounding != "simple" or how.mode == "linear" or min(scale) >= 1)
        and not how.antialias
        and not how.exclude_outside
        and dtype == "float32"
        and min(output[2:]) > 1
        and all(
            abs(size * factor - wanted) < 1e-4
            for size, factor, wanted in zip(shape, scale, output, strict=True)
        )
    )


def _exact(factor: float) -> bool:
    """Whether positions in units of `factor` are computed without rounding."""
    return factor == round(factor) or factor in (0.5, 0.25, 0.125)
