"""Means and average pools of quantised tensors as sums of their integers, which are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, integers, operator_name, static_shape
from tinsmith.passes.quantize.operators import Parameters

# What a sum of bytes may hold in an int32 accumulator.
_MOST_TERMS = (2**31 - 1) // 255
# The largest window whose products with ones the depthwise kernel adds up.
_MOST_TAPS = 512


def integer_average(
    rewriter: BlockRewriter, call: Any, stored: relax.Expr, meaning: Parameters
) -> relax.Expr | None:
    """The mean or pool `call` of `dequantize(stored)` as a scaled sum; None if it has no such form.

    `mean`, `avg_pool2d` and `adaptive_avg_pool2d` of a tensor with one scale. A pool is a
    depthwise convolution with ones, or a mean if its window is the whole image:

        (sum of q inside - zero point * pixels inside) * scale / pixels counted

    where the two numbers of pixels differ from place to place if there is a border.
    """
    name, shape = operator_name(call), static_shape(call.args[0])
    if shape is None or not meaning.per_tensor or 0 in shape:
        return None
    if name == "relax.mean":
        if call.attrs.axis is None:
            return None
        over = [axis % len(shape) for axis in integers(call.attrs.axis)]
        return _mean(rewriter, stored, meaning, shape, over, bool(call.attrs.keepdims))
    if str(call.attrs.layout) != "NHWC" or str(call.attrs.out_layout) not in ("NHWC", ""):
        return None
    axes = _window(call, shape)
    if axes is None:
        return None
    window = [axis.taps for axis in axes]
    if window == list(shape[1:3]) and all(axis.is_plain for axis in axes):
        return _mean(rewriter, stored, meaning, shape, [1, 2], True)
    if int(np.prod(window)) > _MOST_TAPS:
        return None
    total = rewriter.emit(
        relax.op.nn.conv2d(
            stored,
            constant(np.ones((*window, 1, shape[3]), "int8")),
            strides=[axis.stride for axis in axes],
            padding=[axis.before for axis in axes] + [axis.reach for axis in axes],
            dilation=[axis.dilation for axis in axes],
            groups=shape[3],
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_layout="NHWC",
            out_dtype="int32",
        )
    )
    inside, counted = (
        np.multiply.outer(rows, columns)[None, :, :, None]
        for rows, columns in zip(axes[0].pixels(), axes[1].pixels(), strict=True)
    )
    return _scaled(rewriter, total, meaning, inside, counted)


@dataclass(frozen=True)
class _Axis:
    """A pool along one axis: `before` and `after` are the padding."""

    extent: int
    outputs: int
    taps: int
    stride: int
    dilation: int = 1
    before: int = 0
    after: int = 0
    count_padding: bool = False

    @property
    def reach(self) -> int:
        """How far the last window reaches beyond the image; the pool may round up."""
        last = (self.outputs - 1) * self.stride + (self.taps - 1) * self.dilation
        return max(0, last + 1 - self.extent - self.before)

    @property
    def is_plain(self) -> bool:
        """Whether no window meets padding."""
        return self.before == self.reach == 0

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """For each output: how many taps are inside the image, and how many count."""
        first = np.arange(self.outputs)[:, None] * self.stride - self.before
        place = first + np.arange(self.taps) * self.dilation
        inside = ((place >= 0) & (place < self.extent)).sum(1)
        counted = (place < self.extent + self.after).sum(1) if self.count_padding else inside
        return inside, np.maximum(counted, 1)


def _window(call: Any, shape: tuple[int, ...]) -> list[_Axis] | None:
    """Height and width of a pool; None if its windows are of different extents."""
    outputs = (static_shape(call) or ())[1:3]
    attrs = call.attrs
    if operator_name(call) == "relax.nn.adaptive_avg_pool2d":
        pairs = list(zip(shape[1:3], outputs, strict=True))
        if any(extent % out for extent, out in pairs):
            return None
        return [_Axis(extent, out, extent // out, extent // out) for extent, out in pairs]
    return [
        _Axis(
            shape[1 + i],
            outputs[i],
            integers(attrs.pool_size)[i],
            integers(attrs.strides)[i],
            integers(attrs.dilation)[i],
            integers(attrs.padding)[i],
            integers(attrs.padding)[2 + i],
            bool(attrs.count_include_pad),
        )
        for i in range(2)
    ]


def _mean(
    rewriter: BlockRewriter,
    stored: relax.Expr,
    meaning: Parameters,
    shape: tuple[int, ...],
    axes: list[int],
    keepdims: bool,
) -> relax.Expr | None:
    count = int(np.prod([shape[axis] for axis in axes]))
    if count > _MOST_TERMS:
        return None
    wide = rewriter.emit(relax.op.astype(stored, "int32"))
    total = rewriter.emit(relax.op.sum(wide, axes, keepdims=keepdims))
    return _scaled(rewriter, total, meaning, np.asarray(count), np.asarray(count))


def _scaled(
    rewriter: BlockRewriter,
    total: relax.Expr,
    meaning: Parameters,
    inside: np.ndarray,
    counted: np.ndarray,
) -> relax.Expr:
    """`(total - zero point * inside) * scale / counted`; equal numbers become one."""
    if meaning.zero_point:
        offset = _one_if_equal(inside * int(meaning.zero_point)).astype("int32")
        total = rewriter.emit(relax.op.subtract(total, constant(offset)))
    factor = _one_if_equal(float(np.float32(meaning.scale)) / counted).astype("float32")
    real = rewriter.emit(relax.op.astype(total, "float32"))
    return relax.op.multiply(real, constant(factor))


def _one_if_equal(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    return flat[0] if (flat == flat[0]).all() else values
