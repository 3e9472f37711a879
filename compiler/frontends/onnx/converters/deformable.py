"""Convolution whose window is bent by offsets computed at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    constant,
    dtype_of,
    reshape,
    static_shape,
)


class DeformConv(OnnxOpConverter):
    """A product of weights and bilinear samples of the image (Zhu et al., arXiv 1811.11168, eq. 1).

    The samples of all places of the window are gathered first, as in a convolution by im2col; what
    lies outside the image is zero.
    """

    @classmethod
    def _impl_v19(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, weight, offset, bias, mask = (*inputs, None, None)[:5]
        if len(static_shape(x)) != 4:
            raise ValueError("only images of two spatial axes are supported")
        batch, channels = static_shape(x)[:2]
        filters, _, *window = static_shape(weight)
        rows, columns = static_shape(offset)[2:]
        places, outputs = window[0] * window[1], rows * columns
        group, bends = attr.get("group", 1), attr.get("offset_group", 1)
        split = (batch, bends, places, 2, outputs)
        offsets = bb.emit(relax.op.reshape(offset, split))
        start = _regular(attr, window, (rows, columns), dtype_of(x))

        def along(axis: int) -> relax.Expr:
            part = relax.op.strided_slice(offsets, [3], [axis], [axis + 1])
            part = relax.op.reshape(part, (batch, bends, places, outputs))
            return bb.emit(relax.op.add(part, constant(start[axis])))

        samples = _sampled(bb, x, along(0), along(1), bends)
        if mask is not None:
            spread = (batch, bends, 1, places, outputs)
            samples = bb.emit(relax.op.multiply(samples, relax.op.reshape(mask, spread)))
        inner = channels // group * places
        samples = bb.emit(relax.op.reshape(samples, (batch, group, inner, outputs)))
        kernel = reshape(bb, weight, (group, filters // group, inner))
        y = bb.emit(relax.op.matmul(kernel, samples))
        y = bb.emit(relax.op.reshape(y, (batch, filters, rows, columns)))
        if bias is None:
            return y
        return relax.op.add(y, reshape(bb, bias, (filters, 1, 1)))


def _regular(
    attr: Any, window: list[int], outputs: tuple[int, int], dtype: str
) -> list[np.ndarray]:
    """Rows and columns that an unbent window reads, each (places of the window, outputs)."""
    strides, dilations = attr.get("strides", (1, 1)), attr.get("dilations", (1, 1))
    pads = attr.get("pads", (0, 0, 0, 0))
    lines = [
        (np.arange(outputs[axis]) * strides[axis] - pads[axis])[None, :]
        + (np.arange(window[axis]) * dilations[axis])[:, None]
        for axis in (0, 1)
    ]
    grids = (lines[0][:, None, :, None], lines[1][None, :, None, :])
    shape = (*window, *outputs)
    flat = (window[0] * window[1], outputs[0] * outputs[1])
    return [np.broadcast_to(grid, shape).reshape(flat).astype(dtype) for grid in grids]


def _sampled(
    bb: relax.BlockBuilder, x: relax.Expr, y_at: relax.Expr, x_at: relax.Expr, bends: int
) -> relax.Expr:
    """`x` (batch, channels, height, width) between its pixels at positions (batch, bends, places,
    outputs): (batch, bends, channels of a bend, places, outputs).
    """
    batch, channels, height, width = static_shape(x)
    places, outputs = static_shape(y_at)[2:]
    shape = (batch, bends, channels // bends, places * outputs)
    pixels = bb.emit(relax.op.reshape(x, (*shape[:3], height * width)))
    total = None
    rows = _neighbours(bb, y_at, height)
    columns = _neighbours(bb, x_at, width)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = relax.op.add(relax.op.multiply(row, relax.const(width, "int64")), column)
            index = relax.op.reshape(index, (batch, bends, 1, places * outputs))
            index = bb.emit(relax.op.broadcast_to(index, shape))
            weight = relax.op.multiply(row_weight, column_weight)
            weight = bb.emit(relax.op.reshape(weight, (batch, bends, 1, places * outputs)))
            part = relax.op.multiply(relax.op.gather_elements(pixels, index, axis=3), weight)
            total = bb.emit(part if total is None else relax.op.add(total, part))
    return bb.emit(relax.op.reshape(total, (*shape[:3], places, outputs)))


def _neighbours(
    bb: relax.BlockBuilder, position: relax.Expr, extent: int
) -> list[tuple[relax.Expr, relax.Expr]]:
    """The two entries around `position`, within an axis of `extent`, and what each weighs: nothing
    if it lies outside.
    """
    dtype = dtype_of(position)
    first = bb.emit(relax.op.floor(position))
    far = bb.emit(relax.op.subtract(position, first))
    near = bb.emit(relax.op.subtract(relax.const(1.0, dtype), far))
    found = []
    for step, weight in ((0.0, near), (1.0, far)):
        at = bb.emit(relax.op.add(first, relax.const(step, dtype)))
        inside = relax.op.logical_and(
            relax.op.greater_equal(at, relax.const(0.0, dtype)),
            relax.op.less_equal(at, relax.const(float(extent - 1), dtype)),
        )
        weight = bb.emit(relax.op.where(inside, weight, relax.const(0.0, dtype)))
        # Twice, for NaN becomes any integer.
        near_by = relax.op.clip(at, 0.0, float(extent - 1))
        index = bb.emit(relax.op.clip(relax.op.astype(near_by, "int64"), 0, extent - 1))
        found.append((index, weight))
    return found
