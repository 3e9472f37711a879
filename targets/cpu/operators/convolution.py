"""Definition of 2-D convolution with packed weights, and the packing itself.

The definition is exact but naive TensorIR; its annotation carries the workload
to the convolution template, which replaces the loops.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tinsmith.targets.cpu.arithmetic import arithmetic_named
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm, weight_at
from tinsmith.targets.template import WORKLOAD_ATTRIBUTE


@dataclass(frozen=True)
class ConvolutionWorkload:
    """One convolution. `channels` are those of one group; padding is at the top and left.

    Outside the image are elements of `pad_value`: the zero point of quantised data.
    `data_layout` is the input's ("NHWC" or "NCHW"); the output is always NHWC.
    `lanes` is the width by which the output channels of the weights are packed, and
    `arithmetic` names how products are summed (see `tinsmith.targets.cpu.arithmetic`); `compressed`
    says how the weights are stored if not as floats.
    """

    batch: int
    in_height: int
    in_width: int
    in_channels: int
    out_height: int
    out_width: int
    out_channels: int
    groups: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    dilation_height: int
    dilation_width: int
    pad_top: int
    pad_left: int
    lanes: int
    data_layout: str = "NHWC"
    arithmetic: str = "float32"
    pad_value: int = 0
    compressed: CompressedForm | None = None
    kind: str = "convolution"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ConvolutionWorkload:
        """The workload that an annotation carries."""
        if values.get("compressed") is not None:
            values = {**values, "compressed": CompressedForm(**values["compressed"])}
        return cls(**values)

    @property
    def blocks(self) -> int:
        """Number of packed output channel vectors of one group."""
        return -(-self.out_channels // self.lanes)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one call, padding counted."""
        outputs = self.batch * self.out_height * self.out_width * self.out_channels * self.groups
        return 2 * outputs * self.in_channels * self.kernel_height * self.kernel_width

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel depends on the one input pixel in the same place."""
        return (
            self.kernel_height == self.kernel_width == 1
            and self.stride_height == self.stride_width == 1
            and self.pad_top == self.pad_left == 0
            and (self.out_height, self.out_width) == (self.in_height, self.in_width)
        )


def pack_weights(
    weights: npt.NDArray[Any], groups: int, lanes: int, depth: int = 1
) -> npt.NDArray[Any]:
    """HWIO weights `[KH, KW, I/groups, O]`, packed by vectors of output channels.

    The result is `[groups, ceil(O/groups/lanes), KH, KW, ceil(I/groups/depth), lanes*depth]`
    with the `depth` input channels of one output channel side by side; missing channels are
    zero.
    """
    kernel_height, kernel_width, inputs, outputs = weights.shape
    per_group = outputs // groups
    blocks, steps = -(-per_group // lanes), -(-inputs // depth)
    padded = np.zeros(
        (kernel_height, kernel_width, steps * depth, groups, blocks * lanes), weights.dtype
    )
    padded[:, :, :inputs, :, :per_group] = weights.reshape(
        kernel_height, kernel_width, inputs, groups, per_group
    )
    split = padded.reshape(kernel_height, kernel_width, steps, depth, groups, blocks, lanes)
    packed = split.transpose(4, 5, 0, 1, 2, 6, 3)
    return np.ascontiguousarray(packed).reshape(*packed.shape[:5], lanes * depth)


def define_convolution(
    data: te.Tensor, weights: Sequence[te.Tensor], workload: ConvolutionWorkload
) -> te.Tensor:
    """The NHWC convolution of `data` with packed `weights`.

    `data` is `[N, H, W, groups*C]` or `[N, groups*C, H, W]`, `weights` one tensor as
    `pack_weights` makes it, or codes, scales and levels (see `weight_at`); the result is
    `[N, OH, OW, groups*O]` in the accumulator's dtype.
    """
    w = workload
    arithmetic = arithmetic_named(w.arithmetic)
    depth = arithmetic.depth
    kh = te.reduce_axis((0, w.kernel_height), name="kh")
    kw = te.reduce_axis((0, w.kernel_width), name="kw")
    ic = te.reduce_axis((0, w.in_channels), name="ic")
    border = tirx.const(w.pad_value, data.dtype)

    def pixel(n: tirx.Expr, y: tirx.Expr, x: tirx.Expr, channel: tirx.Expr) -> tirx.Expr:
        inside = tirx.all(y >= 0, y < w.in_height, x >= 0, x < w.in_width)
        value = data[n, y, x, channel] if w.data_layout == "NHWC" else data[n, channel, y, x]
        return tirx.if_then_else(inside, value, border)

    def element(n: tirx.Expr, y: tirx.Expr, x: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        group, channel = c // w.out_channels, c % w.out_channels
        value = pixel(
            n,
            y * w.stride_height + kh * w.dilation_height - w.pad_top,
            x * w.stride_width + kw * w.dilation_width - w.pad_left,
            group * w.in_channels + ic,
        )
        wide = arithmetic.accumulator
        block = [group, channel // w.lanes]
        if w.compressed is not None:
            tap, lane = kh * w.kernel_width + kw, channel % w.lanes
            weight = weight_at(w.compressed, weights, block, [kh, kw], tap, ic, lane)
            return te.sum(value * weight, axis=[kh, kw, ic])
        lane = (channel % w.lanes) * depth + ic % depth
        weight = weights[0](*block, kh, kw, ic // depth, lane)
        return te.sum(value.astype(wide) * weight.astype(wide), axis=[kh, kw, ic])

    return te.compute(
        (w.batch, w.out_height, w.out_width, w.groups * w.out_channels),
        element,
        name="convolution",
        attrs={WORKLOAD_ATTRIBUTE: json.dumps(asdict(w))},
    )
