"""Maxima of windows with their positions, and the way back.

The positions are those of the standard: of the largest element of each window within the whole
tensor, row by row, or column by column inside an image for `storage_order=1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    reshape,
    static_shape,
    zeros,
)


@dataclass(frozen=True)
class Windows:
    """The windows of a pooling along each spatial axis, in entries of the tensor."""

    extents: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def of(cls, extents: tuple[int, ...], attr: Any) -> Windows:
        """The windows that the attributes of a MaxPool describe, over axes of `extents`."""
        rank = len(extents)
        kernel = tuple(attr["kernel_shape"])
        strides = tuple(attr.get("strides") or (1,) * rank)
        dilations = tuple(attr.get("dilations") or (1,) * rank)
        pads = tuple(attr.get("pads") or (0,) * 2 * rank)
        auto_pad = attr.get("auto_pad", b"NOTSET").decode()
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before, outputs = [], []
        for axis, extent in enumerate(extents):
            low, high, stride = pads[axis], pads[axis + rank], strides[axis]
            if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                total = max((-(-extent // stride) - 1) * stride + reach[axis] - extent, 0)
                low = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                high = total - low
            elif auto_pad == "VALID":
                low = high = 0
            free = extent + low + high - reach[axis]
            if attr.get("ceil_mode", 0):
                count = math.ceil(free / stride) + 1
                # No window begins in the padding behind the tensor.
                count -= (count - 1) * stride >= extent + low
            else:
                count = free // stride + 1
            before.append(low)
            outputs.append(count)
        return cls(extents, tuple(outputs), kernel, strides, dilations, tuple(before))

    def entries(self) -> np.ndarray:
        """The flat entry behind each element of each window, int64 (windows, elements).

        Elements in the padding have the entry after the last.
        """
        rank, total = len(self.extents), math.prod(self.extents)
        flat = np.zeros((1,) * (2 * rank), np.int64)
        outside = np.zeros((1,) * (2 * rank), bool)
        for axis, extent in enumerate(self.extents):
            first = np.arange(self.outputs[axis]) * self.strides[axis] - self.before[axis]
            position = first[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
            shape = [1] * (2 * rank)
            shape[axis], shape[rank + axis] = position.shape
            position = position.reshape(shape)
            outside = outside | (position < 0) | (position >= extent)
            flat = flat * extent + position
        flat = np.where(outside, total, flat)
        return flat.reshape(math.prod(self.outputs), math.prod(self.kernel))

    def stored_positions(self, by_columns: bool) -> np.ndarray:
        """The position that the standard gives to each flat entry, int64."""
        flat = np.arange(math.prod(self.extents), dtype=np.int64)
        if not by_columns:
            return flat
        index = np.unravel_index(flat, self.extents)
        steps = np.cumprod([1, *self.extents[:-1]])
        return np.asarray(sum(i * int(step) for i, step in zip(index, steps, strict=True)))


class MaxPool(OnnxOpConverter):
    """Maxima of windows; where their positions are asked for, both are read by index."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        if attr["tvm_custom"]["num_outputs"] < 2:
            automatic = attr.get("auto_pad", b"").startswith(b"SAME")
            plain = _spelled_out(x, attr) if automatic else attr
            return onnx_frontend.MaxPool._impl_v1(bb, inputs, plain, params)
        batch, channels, *extents = static_shape(x)
        windows = Windows.of(tuple(extents), attr)
        entries = windows.entries()
        images, size = batch * channels, math.prod(extents)
        # The padding is one more entry, smaller than any other or as small as the smallest.
        dtype = dtype_of(x)
        low = np.iinfo(dtype).min if "int" in dtype else -np.inf
        rows = bb.emit(relax.op.reshape(x, (images, size)))
        border = constant(np.full((images, 1), low).astype(dtype))
        rows = bb.emit(relax.op.concat([rows, border], axis=1))
        # Padding comes last in each window, so that ties are won by the tensor's own elements.
        inside_first = np.argsort(entries == size, axis=1, kind="stable")
        entries = np.take_along_axis(entries, inside_first, 1)
        gathered = bb.emit(relax.op.take(rows, constant(entries.reshape(-1)), 1, mode="clip"))
        gathered = bb.emit(relax.op.reshape(gathered, (images, *entries.shape)))
        values = bb.emit(relax.op.max(gathered, axis=2))
        chosen = bb.emit(relax.op.argmax(gathered, axis=2))
        chosen = bb.emit(relax.op.astype(chosen, "int64"))
        starts = np.arange(entries.shape[0], dtype=np.int64)[None, :] * entries.shape[1]
        stored = windows.stored_positions(bool(attr.get("storage_order", 0)))
        table = np.append(stored, 0)[entries.reshape(-1)]
        place = bb.emit(relax.op.add(chosen, constant(starts)))
        inside = bb.emit(relax.op.take(constant(table), place, 0, mode="clip"))
        offsets = constant(np.arange(images, dtype=np.int64)[:, None] * size)
        positions = bb.emit(relax.op.add(inside, offsets))
        shape = (batch, channels, *windows.outputs)
        return relax.Tuple([bb.emit(relax.op.reshape(t, shape)) for t in (values, positions)])


class AveragePool(OnnxOpConverter):
    """Means of windows; without the padding, what a rounded up size adds counts as padding."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        rounded = attr.get("ceil_mode", 0) and not attr.get("count_include_pad", 0)
        plain = _spelled_out(inputs[0], attr) if rounded else attr
        return onnx_frontend.AveragePool._impl_v1(bb, inputs, plain, params)


class LpPool(OnnxOpConverter):
    """Norms of windows; padding is made of zeros, whatever it is there for."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return onnx_frontend.LpPool._impl_v1(bb, inputs, _spelled_out(inputs[0], attr), params)


def _spelled_out(x: relax.Expr, attr: Any) -> dict[str, Any]:
    """`attr` with all padding as pads, what SAME_UPPER and `ceil_mode` add included."""
    windows = Windows.of(static_shape(x)[2:], attr)
    after = [
        max((count - 1) * stride + (k - 1) * dilation + 1 - extent - low, 0)
        for count, stride, k, dilation, extent, low in zip(
            windows.outputs,
            windows.strides,
            windows.kernel,
            windows.dilations,
            windows.extents,
            windows.before,
            strict=True,
        )
    ]
    return {**attr, "auto_pad": b"NOTSET", "pads": (*windows.before, *after), "ceil_mode": 0}


class MaxUnpool(OnnxOpConverter):
    """Values put where MaxPool found them, zeros elsewhere; what points outside is dropped."""

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, positions, wanted = inputs[0], inputs[1], inputs[2]
        batch, channels, *extents = static_shape(x)
        rank = len(extents)
        strides = attr.get("strides") or (1,) * rank
        pads = attr.get("pads") or (0,) * 2 * rank
        sizes = tuple(
            (extent - 1) * strides[i] + attr["kernel_shape"][i] - pads[i] - pads[i + rank]
            for i, extent in enumerate(extents)
        )
        shape = (batch, channels, *sizes)
        if wanted is not None:
            known = as_numpy(wanted)
            if known is None:
                raise ValueError("the output shape depends on data")
            # Positions count in the tensor of the given shape, as in ONNX Runtime.
            shape = tuple(int(size) for size in known.reshape(-1))
        count = math.prod(shape)
        last = relax.const(count, "int64")
        flat = bb.emit(reshape(bb, positions, (-1,)))
        outside = relax.op.logical_or(
            relax.op.less(flat, relax.const(0, "int64")), relax.op.greater_equal(flat, last)
        )
        flat = bb.emit(relax.op.where(outside, last, flat))
        values = bb.emit(reshape(bb, x, (-1,)))
        # One more entry takes what points outside.
        spread = bb.emit(
            relax.op.scatter_elements(zeros((count + 1,), dtype_of(x)), flat, values, axis=0)
        )
        kept = bb.emit(relax.op.strided_slice(spread, [0], [0], [count]))
        return relax.op.reshape(kept, shape)


class NhwcMaxPool(OnnxOpConverter):
    """MaxPool of images whose channels come last."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        first = bb.emit(relax.op.permute_dims(inputs[0], [0, 3, 1, 2]))
        pooled = MaxPool._impl_v1(bb, onnx_input([first]), attr, params)
        return relax.op.permute_dims(bb.emit(pooled), [0, 2, 3, 1])
