"""Definition of a 3x3 convolution whose weights are stored as Winograd's transform.

See `tinsmith.targets.cpu.winograd_matrices` for the algorithm. The definition is that of
the convolution itself, naive and exact but for rounding: it reads each weight
back from its transform. The template replaces it by the fast algorithm.

Weights of 16 bits are stored as they are, because rounded transforms would cost digits, and
their transforms in float32 four or eight times the memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tinsmith.targets.cpu.arithmetic import Float32, arithmetic_named
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.winograd_matrices import winograd_matrices
from tinsmith.targets.template import WORKLOAD_ATTRIBUTE


@dataclass(frozen=True)
class WinogradWorkload:
    """`convolution` computed in tiles of `tile x tile` outputs."""

    convolution: ConvolutionWorkload
    tile: int
    kind: str = "winograd"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WinogradWorkload:
        """The workload that an annotation carries."""
        return cls(**{**values, "convolution": ConvolutionWorkload(**values["convolution"])})

    @property
    def arithmetic(self) -> str:
        """The arithmetic of the products, and the algorithm."""
        return f"{self.convolution.arithmetic} F({self.tile}x{self.tile})"

    @property
    def transforms_weights(self) -> bool:
        """Whether the kernel transforms its weights, which are stored in 16 bits."""
        return self.convolution.arithmetic != Float32.name

    @property
    def patch(self) -> int:
        """Height and width of the input that a tile needs."""
        return self.tile + 2

    @property
    def tiles(self) -> tuple[int, int, int]:
        """How many tiles there are: images, down, across."""
        w = self.convolution
        return w.batch, -(-w.out_height // self.tile), -(-w.out_width // self.tile)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products in the transformed domain."""
        w = self.convolution
        images, down, across = self.tiles
        return 2 * images * down * across * self.patch**2 * w.in_channels * w.out_channels


def supports_winograd(w: ConvolutionWorkload) -> bool:
    """Whether Winograd's algorithm can compute the convolution at all."""
    return (
        (w.kernel_height, w.kernel_width) == (3, 3)
        and (w.stride_height, w.stride_width) == (1, 1)
        and (w.dilation_height, w.dilation_width) == (1, 1)
        and w.groups == 1
        and w.data_layout == "NHWC"
        and isinstance(arithmetic_named(w.arithmetic), Float32)
        and w.pad_value == 0
        and w.compressed is None
    )


def transform_weights(
    weights: npt.NDArray[np.float32], tile: int, lanes: int
) -> npt.NDArray[np.float32]:
    """HWIO weights `[3, 3, I, O]`, transformed in float64 and packed by output channels.

    The result is `[ceil(O/lanes), (tile+2)^2, I, lanes]`; missing channels are zero.
    """
    matrix = winograd_matrices(tile).weights
    inputs, outputs = weights.shape[2:]
    blocks = -(-outputs // lanes)
    padded = np.zeros((3, 3, inputs, blocks * lanes))
    padded[..., :outputs] = weights
    transformed = np.einsum("ay,bx,yxio->abio", matrix, matrix, padded, optimize=True)
    split = transformed.reshape(len(matrix) ** 2, inputs, blocks, lanes)
    return np.ascontiguousarray(split.transpose(2, 0, 1, 3), dtype=np.float32)


def pack_taps(weights: npt.NDArray[np.generic], lanes: int) -> npt.NDArray[np.generic]:
    """HWIO weights `[3, 3, I, O]` as `[ceil(O/lanes), I, 9 * lanes]`; missing channels are zero."""
    inputs, outputs = weights.shape[2:]
    blocks = -(-outputs // lanes)
    padded = np.zeros((3, 3, inputs, blocks * lanes), weights.dtype)
    padded[..., :outputs] = weights
    split = padded.reshape(9, inputs, blocks, lanes).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(split).reshape(blocks, inputs, 9 * lanes)


def define_winograd(data: te.Tensor, weights: te.Tensor, workload: WinogradWorkload) -> te.Tensor:
    """The NHWC convolution of float32 `data` `[N, H, W, I]`; the result is `[N, OH, OW, O]`.

    `weights` are as `transform_weights` makes them, or as `pack_taps` where the kernel does.
    """
    w, n = workload.convolution, workload.patch
    recovery = winograd_matrices(workload.tile).recovery
    # The few transformed weights that a tap is made of, by its row or column.
    terms = [[(int(i), float(row[i])) for i in np.flatnonzero(row)] for row in recovery]
    kh = te.reduce_axis((0, 3), name="kh")
    kw = te.reduce_axis((0, 3), name="kw")
    ic = te.reduce_axis((0, w.in_channels), name="ic")

    def tap(channel: tirx.Expr) -> tirx.Expr:
        if workload.transforms_weights:
            place = (kh * 3 + kw) * w.lanes + channel % w.lanes
            return weights[channel // w.lanes, ic, place].astype("float32")

        def at(row: int, column: int) -> tirx.Expr:
            parts = [
                weights[channel // w.lanes, a * n + b, ic, channel % w.lanes]
                * tirx.const(down * across, "float32")
                for a, down in terms[row]
                for b, across in terms[column]
            ]
            return sum(parts[1:], parts[0])

        def in_row(row: int) -> tirx.Expr:
            last = tirx.if_then_else(kw < 2, at(row, 1), at(row, 2))
            return tirx.if_then_else(kw < 1, at(row, 0), last)

        last = tirx.if_then_else(kh < 2, in_row(1), in_row(2))
        return tirx.if_then_else(kh < 1, in_row(0), last)

    def element(image: tirx.Expr, y: tirx.Expr, x: tirx.Expr, channel: tirx.Expr) -> tirx.Expr:
        row, column = y + kh - w.pad_top, x + kw - w.pad_left
        inside = tirx.all(row >= 0, row < w.in_height, column >= 0, column < w.in_width)
        pixel = tirx.if_then_else(inside, data[image, row, column, ic], tirx.const(0, data.dtype))
        return te.sum(pixel * tap(channel), axis=[kh, kw, ic])

    return te.compute(
        (w.batch, w.out_height, w.out_width, w.out_channels),
        element,
        name="winograd",
        attrs={WORKLOAD_ATTRIBUTE: json.dumps(asdict(workload))},
    )
