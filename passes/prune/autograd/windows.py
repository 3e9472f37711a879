"""Convolutions and poolings in PyTorch: layouts with channels in front, any padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tvm import relax

from tinsmith.passes.graph.tensors import integers, static_shape

Function = Callable[..., Any]

_LAYOUTS = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def _channels_first(layout: object, rank: int) -> None:
    if str(layout) != _LAYOUTS[rank]:
        raise ValueError(f"the layout {layout}")


def _sides(padding: Sequence[object], rank: int) -> list[tuple[int, int]]:
    """Before and after, along each axis."""
    flat = integers(padding)
    return [(flat[i], flat[rank + i]) for i in range(rank)]


def _padded(x: Tensor, sides: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    flat = [width for pair in reversed(sides) for width in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _convolution(rank: int) -> Callable[[relax.Call], Function]:
    function = getattr(functional, f"conv{rank}d")

    def rule(call: relax.Call) -> Function:
        attrs = call.attrs
        _channels_first(attrs.data_layout, rank)
        if str(attrs.kernel_layout) != "OI" + _LAYOUTS[rank][2:]:
            raise ValueError(f"the layout {attrs.kernel_layout}")
        sides = _sides(attrs.padding, rank)
        # PyTorch pads both sides alike.
        alike = all(before == after for before, after in sides)
        padding = [before for before, _ in sides] if alike else 0
        options = (
            integers(attrs.strides),
            padding,
            integers(attrs.dilation),
            int(attrs.groups),
        )

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return function(x if alike else _padded(x, sides), weight, bias, *options)

        return convolve

    return rule


def _transposed(rank: int) -> Callable[[relax.Call], Function]:
    function = getattr(functional, f"conv_transpose{rank}d")

    def rule(call: relax.Call) -> Function:
        attrs = call.attrs
        _channels_first(attrs.data_layout, rank)
        if str(attrs.kernel_layout) != "IO" + _LAYOUTS[rank][2:]:
            raise ValueError(f"the layout {attrs.kernel_layout}")
        sides = _sides(attrs.padding, rank)
        if any(before != after for before, after in sides):
            raise ValueError("a transposed convolution that is padded unevenly")
        options = (
            integers(attrs.strides),
            [before for before, _ in sides],
            integers(attrs.output_padding),
            int(attrs.groups),
            integers(attrs.dilation),
        )

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return function(x, weight, bias, *options)

        return convolve

    return rule


def _pool_sides(call: relax.Call, rank: int) -> list[tuple[int, int]]:
    """The paddings, with what the last window needs where extents are rounded up."""
    attrs = call.attrs
    before, after = static_shape(call.args[0]), static_shape(call)
    if before is None or after is None:
        raise ValueError("a shape that depends on the data")
    windows = zip(
        _sides(attrs.padding, rank),
        before[2:],
        after[2:],
        integers(attrs.pool_size),
        integers(attrs.strides),
        integers(attrs.dilation),
        strict=True,
    )
    return [
        (left, max(right, (out - 1) * stride + (kernel - 1) * dilation + 1 - extent - left))
        for (left, right), extent, out, kernel, stride, dilation in windows
    ]


def _max_pool(rank: int) -> Callable[[relax.Call], Function]:
    function = getattr(functional, f"max_pool{rank}d")

    def rule(call: relax.Call) -> Function:
        attrs = call.attrs
        _channels_first(attrs.layout, rank)
        sides = _pool_sides(call, rank)
        kernel, strides = integers(attrs.pool_size), integers(attrs.strides)
        dilation = integers(attrs.dilation)
        lowest = -float("inf")
        return lambda x: function(_padded(x, sides, lowest), kernel, strides, 0, dilation)

    return rule


def _average_pool(rank: int) -> Callable[[relax.Call], Function]:
    function = getattr(functional, f"avg_pool{rank}d")

    def rule(call: relax.Call) -> Function:
        attrs = call.attrs
        _channels_first(attrs.layout, rank)
        if any(step != 1 for step in integers(attrs.dilation)):
            raise ValueError("an average over a dilated window")
        sides, asked = _pool_sides(call, rank), _sides(attrs.padding, rank)
        # What is padded counts as asked, what the last window lacks never.
        counted = asked if bool(attrs.count_include_pad) else [(0, 0)] * rank
        rest = [(s[0] - c[0], s[1] - c[1]) for s, c in zip(sides, counted, strict=True)]
        kernel, strides = integers(attrs.pool_size), integers(attrs.strides)

        def average(x: Tensor) -> Tensor:
            if not any(width for pair in rest for width in pair):
                return function(_padded(x, sides), kernel, strides)
            ones = _padded(torch.ones_like(_padded(x[:1, :1], counted)), rest)
            share = function(ones, kernel, strides)
            return function(_padded(x, sides), kernel, strides) / share

        return average

    return rule


def _adaptive_average(rank: int) -> Callable[[relax.Call], Function]:
    function = getattr(functional, f"adaptive_avg_pool{rank}d")

    def rule(call: relax.Call) -> Function:
        _channels_first(call.attrs.layout, rank)
        size = integers(call.attrs.output_size)
        return lambda x: function(x, size)

    return rule


WINDOWED: dict[str, Callable[[relax.Call], Function]] = {
    **{f"relax.nn.conv{rank}d": _convolution(rank) for rank in _LAYOUTS},
    **{f"relax.nn.conv{rank}d_transpose": _transposed(rank) for rank in (1, 2, 3)},
    **{f"relax.nn.max_pool{rank}d": _max_pool(rank) for rank in _LAYOUTS},
    **{f"relax.nn.avg_pool{rank}d": _average_pool(rank) for rank in _LAYOUTS},
    **{f"relax.nn.adaptive_avg_pool{rank}d": _adaptive_average(rank) for rank in _LAYOUTS},
}
