"""Operators that place values: one-hot encodings, blocks, reversed sequences, deconvolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from compiler.frontends.onnx_converters.constants import constant, dtype_of, static_shape
from compiler.frontends.onnx_converters.selection import integers


class OneHot(OnnxOpConverter):
    """A new axis of `depth` entries, `on` where the index says and `off` elsewhere."""

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        indices, values = inputs[0], inputs[2]
        depth = integers(inputs[1], "the depth")
        if not depth:
            raise ValueError("the depth is missing")
        rank = len(static_shape(indices)) + 1
        axis = attr.get("axis", -1) % rank
        dtype = dtype_of(indices)
        size = relax.const(depth[0], dtype)
        negative = relax.op.less(indices, relax.const(0, dtype))
        indices = bb.emit(relax.op.where(negative, relax.op.add(indices, size), indices))
        column = [1] * rank
        column[axis] = depth[0]
        entries = constant(np.arange(depth[0]).astype(dtype).reshape(column))
        hit = relax.op.equal(relax.op.expand_dims(indices, axis), entries)
        off, on = (
            bb.emit(relax.op.reshape(relax.op.strided_slice(values, [0], [i], [i + 1]), ()))
            for i in (0, 1)
        )
        return relax.op.where(hit, on, off)


class SpaceToDepth(OnnxOpConverter):
    """Blocks of an image to channels, the block's offset before or after the channel."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        n, c, h, w = static_shape(inputs[0])
        b = attr["blocksize"]
        if h % b or w % b:
            raise ValueError(f"height {h} and width {w} are no multiples of the block size {b}")
        split = bb.emit(relax.op.reshape(inputs[0], (n, c, h // b, b, w // b, b)))
        column_first = attr.get("mode", b"DCR") == b"CRD"
        order = [0, 1, 3, 5, 2, 4] if column_first else [0, 3, 5, 1, 2, 4]
        moved = bb.emit(relax.op.permute_dims(split, order))
        return relax.op.reshape(moved, (n, c * b * b, h // b, w // b))


class ReverseSequence(OnnxOpConverter):
    """The first entries along time reversed, as many as each batch entry has."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, lengths = inputs[0], inputs[1]
        shape = static_shape(x)
        time, batch = attr.get("time_axis", 0), attr.get("batch_axis", 1)
        rows = [1] * len(shape)
        rows[batch] = shape[batch]
        columns = [1] * len(shape)
        columns[time] = shape[time]
        step = constant(np.arange(shape[time], dtype=np.int64).reshape(columns))
        length = bb.emit(relax.op.reshape(relax.op.astype(lengths, "int64"), rows))
        last = relax.op.subtract(length, relax.const(1, "int64"))
        position = relax.op.where(relax.op.less(step, length), relax.op.subtract(last, step), step)
        position = bb.emit(relax.op.broadcast_to(position, shape))
        return relax.op.gather_elements(x, position, axis=time)


class ConvTranspose(OnnxOpConverter):
    """TVM's operator, with the padding worked out where the output's shape is given instead."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        wanted = attr.get("output_shape")
        if wanted:
            attr = _padding_for(list(wanted), static_shape(inputs[0]), inputs[1], attr)
        return onnx_frontend.ConvTranspose._impl_v1(bb, inputs, attr, params)


def _padding_for(
    wanted: list[int], shape: tuple[int, ...], weight: relax.Expr, attr: Any
) -> dict[str, Any]:
    """`attr` with pads and output padding for the spatial output sizes `wanted`."""
    spatial = len(shape) - 2
    strides = attr.get("strides", (1,) * spatial)
    dilations = attr.get("dilations", (1,) * spatial)
    extra = list(attr.get("output_padding", (0,) * spatial))
    # The larger half of an odd padding comes last for SAME_UPPER alone, also where nothing is said.
    upper = attr.get("auto_pad", b"NOTSET") == b"SAME_UPPER"
    before, after = [], []
    for axis, kernel in enumerate(static_shape(weight)[2:]):
        full = strides[axis] * (shape[2 + axis] - 1) + (kernel - 1) * dilations[axis] + 1
        total = full + extra[axis] - wanted[-spatial:][axis]
        if total < 0:
            extra[axis] -= total
            total = 0
        half = total // 2 if upper else total - total // 2
        before.append(half)
        after.append(total - half)
    kept = {key: item for key, item in attr.items() if key not in ("auto_pad", "output_shape")}
    return {**kept, "pads": (*before, *after), "output_padding": tuple(extra)}


class RoiAlign(OnnxOpConverter):
    """TVM's operator for averages; ValueError where the maximum of the samples is asked for."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return onnx_frontend.RoiAlign._impl_v10(bb, _checked(bb, inputs, attr), attr, params)

    @classmethod
    def _impl_v16(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return onnx_frontend.RoiAlign._impl_v16(bb, _checked(bb, inputs, attr), attr, params)


def _checked(bb: relax.BlockBuilder, inputs: Any, attr: Any) -> onnx_input:
    """The inputs with numbers of images that exist."""
    if attr.get("mode", b"avg") != b"avg":
        raise ValueError("only the average of the samples is supported, not their maximum")
    images = static_shape(inputs[0])[0]
    numbers = bb.emit(relax.op.clip(inputs[2], 0, images - 1))
    return onnx_input([inputs[0], inputs[1], numbers])
