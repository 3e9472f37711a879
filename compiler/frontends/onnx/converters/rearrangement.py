"""Operators that place values: one-hot encodings, blocks, reversed sequences, deconvolution."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  (names bfloat16 to numpy)
import numpy as np
import onnx
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.frontends.onnx.converters.constants import constant, dtype_of, static_shape
from tinsmith.compiler.frontends.onnx.converters.gathering import ScatterElements
from tinsmith.compiler.frontends.onnx.converters.selection import integers


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


class EyeLike(OnnxOpConverter):
    """Ones on one diagonal of a matrix of the input's shape, of any dtype."""

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        rows, columns = static_shape(inputs[0])
        dtype = dtype_of(inputs[0])
        if "dtype" in attr:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(attr["dtype"]))
        return constant(np.eye(rows, columns, attr.get("k", 0)).astype(np.dtype(dtype)))


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


class Col2Im(OnnxOpConverter):
    """Blocks (batch, channels * places of a block, blocks) added up where they lie in an image.

    That is a transposed convolution: each place of a block has a kernel that is 1 there.
    """

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        image, block = integers(inputs[1], "the image's shape"), integers(inputs[2], "the block's")
        if not image or not block:
            raise ValueError("the shape of the image or of a block depends on data")
        rank, places = len(block), int(np.prod(block))
        strides, dilations = attr.get("strides", (1,) * rank), attr.get("dilations", (1,) * rank)
        pads = attr.get("pads", (0,) * (2 * rank))
        reach = [(b - 1) * d + 1 for b, d in zip(block, dilations, strict=True)]
        padded = [image[i] + pads[i] + pads[i + rank] for i in range(rank)]
        counts = [(padded[i] - reach[i]) // strides[i] + 1 for i in range(rank)]
        batch, rows, columns = static_shape(inputs[0])
        if rows % places or columns != np.prod(counts):
            raise ValueError(f"{rows} rows of {columns} blocks do not make an image of {image}")
        kernels = np.eye(places).reshape(1, places, 1, *block)
        kernels = np.broadcast_to(kernels, (rows // places, *kernels.shape[1:]))
        weight = constant(kernels.reshape(rows, 1, *block).astype(dtype_of(inputs[0])))
        blocks = bb.emit(relax.op.reshape(inputs[0], (batch, rows, *counts)))
        rest = [padded[i] - reach[i] - (counts[i] - 1) * strides[i] for i in range(rank)]
        options = {
            "group": rows // places,
            "kernel_shape": tuple(block),
            "strides": tuple(strides),
            "dilations": tuple(dilations),
            "pads": tuple(pads),
            "output_padding": tuple(rest),
        }
        return ConvTranspose._impl_v1(bb, onnx_input([blocks, weight, None]), options, params)


class TensorScatter(OnnxOpConverter):
    """A cache with new entries along one axis, for each sequence from an index of its own."""

    @classmethod
    def _impl_v24(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        cache, update, start = (*inputs, None)[:3]
        shape, added = static_shape(cache), static_shape(update)
        axis = attr.get("axis", -2) % len(shape)
        step = np.arange(added[axis], dtype=np.int64)
        step = step.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        index = constant(np.broadcast_to(step, added))
        if start is not None:
            column = (shape[0], *[1] * (len(shape) - 1))
            first = relax.op.reshape(relax.op.astype(start, "int64"), column)
            index = bb.emit(relax.op.add(first, index))
        if attr.get("mode", b"linear") == b"circular":
            index = bb.emit(relax.op.floor_mod(index, relax.const(shape[axis], "int64")))
        return ScatterElements._impl_v11(
            bb, onnx_input([cache, index, update]), {"axis": axis}, params
        )


class RoiAlign(OnnxOpConverter):
    """TVM's operator for the averages of samples, given regions in pixels of the map.

    TVM's converter shifts them by half a pixel before it scales them, which is half a pixel of
    another image.
    """

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _aligned(bb, inputs, attr, b"output_half_pixel")

    @classmethod
    def _impl_v16(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _aligned(bb, inputs, attr, b"half_pixel")


def _aligned(bb: relax.BlockBuilder, inputs: Any, attr: Any, default: bytes) -> relax.Expr:
    coordinates = attr.get("coordinate_transformation_mode", default)
    if coordinates not in (b"half_pixel", b"output_half_pixel"):
        raise ValueError(f"unknown coordinate transformation {coordinates.decode()!r}")
    x, regions, numbers = inputs[0], inputs[1], inputs[2]
    dtype, half = dtype_of(regions), coordinates == b"half_pixel"
    scaled = relax.op.multiply(regions, relax.const(attr.get("spatial_scale", 1.0), dtype))
    if half:
        scaled = relax.op.subtract(scaled, relax.const(0.5, dtype))
    # Numbers of images that exist.
    numbers = bb.emit(relax.op.clip(numbers, 0, static_shape(x)[0] - 1))
    column = relax.op.expand_dims(relax.op.astype(numbers, dtype), 1)
    return relax.op.vision.roi_align(
        x,
        bb.emit(relax.op.concat([bb.emit(column), bb.emit(scaled)], axis=1)),
        pooled_size=(attr.get("output_height", 1), attr.get("output_width", 1)),
        spatial_scale=1.0,
        sample_ratio=attr.get("sampling_ratio", 0),
        aligned=half,
        layout="NCHW",
        mode="avg",
    )
