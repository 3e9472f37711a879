"""Operators whose attributes count channels, rebuilt for fewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_count,
    integers,
    operator_name,
    static_shape,
)
from tinsmith.passes.prune.rules.movement import slice_bounds

if TYPE_CHECKING:
    from tinsmith.passes.prune.shrink import Shrinker

# The variable and the call of the given module, and the call on smaller operands.
Adapt = Callable[["Shrinker", relax.Var, relax.Call, relax.Call], relax.Expr]


def _shape(shrinker: Shrinker, variable: relax.Var) -> list[int]:
    """The extents that are left of a tensor of the given module."""
    rank = len(static_shape(variable) or ())
    return [int(shrinker.kept(variable, axis)[0].sum()) for axis in range(rank)]


def _convolution(
    shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call
) -> relax.Expr:
    """As many groups as the channels of the smaller tensors make."""
    name, attrs = str(operator_name(old)), old.attrs
    data, weights = new.args
    kernel = static_shape(weights) or ()
    transposed = "transpose" in name
    if transposed:
        channels = _shape(shrinker, variable)[str(attrs.out_layout).index("C")]
    else:
        channels = (static_shape(data) or ())[str(attrs.data_layout).index("C")]
    per_group = kernel[str(attrs.kernel_layout).index("O" if transposed else "I")]
    padding = {"output_padding": attrs.output_padding} if transposed else {}
    return getattr(relax.op.nn, name.rpartition(".")[2])(
        data,
        weights,
        strides=attrs.strides,
        padding=attrs.padding,
        dilation=attrs.dilation,
        groups=channels // per_group,
        data_layout=attrs.data_layout,
        kernel_layout=attrs.kernel_layout,
        out_layout=attrs.out_layout,
        out_dtype=attrs.out_dtype,
        **padding,
    )


def _group_norm(
    shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call
) -> relax.Expr:
    """As many groups as there are left, of the size that they had."""
    attrs = old.attrs
    before = element_count(static_shape(old.args[1]) or ())
    after = element_count(static_shape(new.args[1]) or ())
    return relax.op.nn.group_norm(
        *new.args,
        num_groups=int(attrs.num_groups) * after // before,
        channel_axis=int(attrs.channel_axis),
        axes=list(integers(attrs.axes)),
        epsilon=float(attrs.epsilon),
        center=bool(attrs.center),
        scale=bool(attrs.scale),
    )


def _reshape(
    shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call
) -> relax.Expr:
    return relax.op.reshape(new.args[0], _shape(shrinker, variable))


def _broadcast_to(
    shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call
) -> relax.Expr:
    return relax.op.broadcast_to(new.args[0], _shape(shrinker, variable))


def _split(shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call) -> relax.Expr:
    axis = int(old.attrs.axis) % len(static_shape(old.args[0]) or ())
    widths = [int(kept.sum()) for kept in shrinker.kept(variable, axis)]
    return relax.op.split(new.args[0], np.cumsum(widths)[:-1].tolist(), axis)


def _strided_slice(
    shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call
) -> relax.Expr:
    bounds = slice_bounds(old) or {}
    for axis, (begin, end, step) in bounds.items():
        kept = shrinker.kept(old.args[0], axis)[0]
        if not kept.all():
            bounds[axis] = (int(kept[:begin].sum()), int(kept[:end].sum()), step)
    begins, ends, steps = (list(column) for column in zip(*bounds.values(), strict=True))
    return relax.op.strided_slice(
        new.args[0],
        list(bounds),
        begins,
        ends,
        steps,
        assume_inbound=bool(old.attrs.assume_inbound),
    )


def _pad(shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call) -> relax.Expr:
    widths = np.reshape(integers(old.attrs.pad_width), (-1, 2))
    for axis, (before, after) in enumerate(widths):
        kept = shrinker.kept(variable, axis)[0]
        widths[axis] = kept[:before].sum(), kept[kept.size - after :].sum()
    return relax.op.nn.pad(
        new.args[0],
        widths.reshape(-1).tolist(),
        str(old.attrs.pad_mode),
        float(old.attrs.pad_value),
    )


def _take(shrinker: Shrinker, variable: relax.Var, old: relax.Call, new: relax.Call) -> relax.Expr:
    """Positions along an axis that has become shorter."""
    positions = constant_array(old.args[1])
    axis = int(old.attrs.axis) % len(static_shape(old.args[0]) or ())
    kept = shrinker.kept(old.args[0], axis)[0]
    if positions is None or kept.all():
        return new
    picked = positions[kept[positions]]
    moved = (np.cumsum(kept) - 1)[picked].astype(positions.dtype)
    return relax.op.take(new.args[0], constant(moved), axis, str(old.attrs.mode))


ADAPTED: dict[str, Adapt] = {
    **{
        f"relax.nn.conv{rank}d{kind}": _convolution
        for rank in (1, 2, 3)
        for kind in ("", "_transpose")
    },
    "relax.nn.group_norm": _group_norm,
    "relax.reshape": _reshape,
    "relax.broadcast_to": _broadcast_to,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.nn.pad": _pad,
    "relax.take": _take,
}
