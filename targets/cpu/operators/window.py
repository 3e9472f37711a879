"""Definitions of the channelwise sliding windows: depthwise convolution and pooling, NHWC."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from tvm import te, tirx

from tinsmith.targets.cpu.nan_propagation import lowest
from tinsmith.targets.template import WORKLOAD_ATTRIBUTE


@dataclass(frozen=True)
class ChannelwiseWorkload:
    """A window that slides over every channel separately.

    `operation` is "multiply" (depthwise convolution with weights `[KH, KW, C]`), "maximum"
    or "average"; `count_padding` says whether an average divides by the whole window even
    where it hangs over the border (`in_*` plus padding on all sides) or by the pixels inside.
    Outside the image a convolution meets elements of `pad_value`.
    """

    batch: int
    channels: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    dilation_height: int
    dilation_width: int
    pad_top: int
    pad_left: int
    operation: str
    pad_bottom: int = 0
    pad_right: int = 0
    count_padding: bool = False
    dtype: str = "float32"
    pad_value: int = 0
    kind: str = "channelwise"

    @property
    def flops(self) -> int:
        """Operations of one call, padding counted; a multiply-add is two."""
        outputs = self.batch * self.out_height * self.out_width * self.channels
        taps = self.kernel_height * self.kernel_width
        return outputs * taps * (2 if self.operation == "multiply" else 1)


# Data, weights and result of the depthwise convolutions that the template computes.
CHANNELWISE_DTYPES = (
    ("float32", "float32", "float32"),
    ("uint8", "int8", "int32"),
    ("int8", "int8", "int32"),
    ("bfloat16", "bfloat16", "float32"),
)


def define_channelwise(
    data: te.Tensor, weights: te.Tensor | None, workload: ChannelwiseWorkload
) -> te.Tensor:
    """The window over `data` `[N, H, W, C]`; the result is `[N, OH, OW, C]`.

    Of bfloat16 data the result is float32, and so are the weights.
    """
    w = workload
    kh = te.reduce_axis((0, w.kernel_height), name="kh")
    kw = te.reduce_axis((0, w.kernel_width), name="kw")
    kind = "float32" if data.dtype == "bfloat16" else data.dtype
    outside = tirx.const(w.pad_value, kind)
    if w.operation == "maximum":
        outside = lowest(str(kind))

    def element(n: tirx.Expr, y: tirx.Expr, x: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        row = y * w.stride_height + kh * w.dilation_height - w.pad_top
        column = x * w.stride_width + kw * w.dilation_width - w.pad_left
        inside = tirx.all(row >= 0, row < w.in_height, column >= 0, column < w.in_width)
        value = tirx.if_then_else(inside, data[n, row, column, c].astype(kind), outside)
        if w.operation == "maximum":
            return te.max(value, axis=[kh, kw])
        if weights is not None:
            wide = "float32" if kind == "float32" else "int32"
            value = value.astype(wide) * weights[kh, kw, c].astype(wide)
        elif w.operation == "average":
            value = value * reciprocal_count(w, y, x).astype(kind)
        return te.sum(value, axis=[kh, kw])

    return te.compute(
        (w.batch, w.out_height, w.out_width, w.channels),
        element,
        name=w.operation,
        attrs={WORKLOAD_ATTRIBUTE: json.dumps(asdict(w))},
    )


def reciprocal_count(w: ChannelwiseWorkload, y: tirx.Expr, x: tirx.Expr) -> tirx.Expr:
    """float32 `1 / number of pixels` that the average at output pixel `(y, x)` divides by."""
    rows = _taps_inside(
        y, w.kernel_height, w.stride_height, w.dilation_height, w.pad_top, w.pad_bottom,
        w.in_height, w.out_height, w.count_padding,
    )  # fmt: skip
    columns = _taps_inside(
        x, w.kernel_width, w.stride_width, w.dilation_width, w.pad_left, w.pad_right,
        w.in_width, w.out_width, w.count_padding,
    )  # fmt: skip
    if isinstance(rows, int) and isinstance(columns, int):
        return tirx.const(1.0 / (rows * columns), "float32")
    count = tirx.convert(rows) * tirx.convert(columns)
    return tirx.const(1.0, "float32") / count.astype("float32")


def _taps_inside(
    position: tirx.Expr,
    taps: int,
    stride: int,
    dilation: int,
    pad_before: int,
    pad_after: int,
    extent: int,
    outputs: int,
    count_padding: bool,
) -> tirx.Expr | int:
    """How many of the `taps` of the window at `position` count."""
    first = 0 if count_padding else pad_before
    end = pad_before + extent + (pad_after if count_padding else 0)
    if first == 0 and (outputs - 1) * stride + (taps - 1) * dilation < end:
        return taps
    start = position * stride
    skipped = tirx.max(0, tirx.floordiv(first - start + dilation - 1, dilation))
    reached = tirx.min(taps, tirx.floordiv(end - start + dilation - 1, dilation))
    return tirx.max(reached - skipped, 1)
