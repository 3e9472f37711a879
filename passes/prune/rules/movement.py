"""Channels through operators that only move elements: reshape, transpose, concat, split, pad ..."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import constant_array, integers, static_shape
from tinsmith.passes.prune.labels import Traced, unlabelled
from tinsmith.passes.prune.tracer import Rule, Tracer


def without_constant_axes(labels: np.ndarray) -> np.ndarray:
    """The labels with extent 1 along every axis where they do not differ.

    If they do not differ at all, positions along some axis still are what goes together.
    """
    if (labels == labels.flat[0]).all() and labels.any():
        return labels
    for axis in range(labels.ndim):
        first = labels.take([0], axis=axis)
        if labels.shape[axis] > 1 and (labels == first).all():
            labels = first
    return labels


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes that a reshape turns into each other."""
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first = (i, j)
        sizes = [1, 1]
        while True:
            if i < len(before) and (sizes[0] <= sizes[1] or j == len(after)):
                sizes[0] *= before[i]
                i += 1
            elif j < len(after):
                sizes[1] *= after[j]
                j += 1
            if sizes[0] == sizes[1]:
                break
        blocks.append((range(first[0], i), range(first[1], j)))
    return blocks


def _reshape(tracer: Tracer, call: relax.Call) -> Traced | None:
    before, after = static_shape(call.args[0]) or (), static_shape(call) or ()
    traced = tracer.of(call.args[0])
    if not traced.labelled:
        return unlabelled(len(after))
    if 0 in before:
        return None
    spread, shaped = list(traced.labels.shape), [1] * len(after)
    for old, new in _blocks(before, after):
        # Only where labels differ is it worth while to write them out.
        if any(traced.labels.shape[axis] > 1 for axis in old):
            for axis in old:
                spread[axis] = before[axis]
            for axis in new:
                shaped[axis] = after[axis]
    labels = np.broadcast_to(traced.labels, spread).reshape(shaped)
    return Traced(without_constant_axes(labels), traced.zero)


def _permute(tracer: Tracer, call: relax.Call) -> Traced:
    traced = tracer.of(call.args[0])
    axes = None if call.attrs.axes is None else integers(call.attrs.axes)
    return Traced(traced.labels.transpose(axes), traced.zero)


def _broadcast_to(tracer: Tracer, call: relax.Call) -> Traced:
    traced = tracer.of(call.args[0])
    missing = len(static_shape(call) or ()) - traced.labels.ndim
    return Traced(traced.labels.reshape((1,) * missing + traced.labels.shape), traced.zero)


def _concat(tracer: Tracer, call: relax.Call) -> Traced | None:
    parts = call.args[0]
    if not isinstance(parts, relax.Tuple) or call.attrs.axis is None:
        return None
    shape = static_shape(call) or ()
    axis = int(call.attrs.axis) % len(shape)
    traced = [tracer.of(part) for part in parts.fields]
    labelled = [item for item in traced if item.labelled]
    zero = all(item.zero for item in labelled)
    if not labelled:
        return unlabelled(len(shape))
    extents = [(static_shape(part) or ())[axis] for part in parts.fields]
    if all(item.axes == (axis,) for item in labelled):
        along = [
            np.broadcast_to(item.labels, (*(1,) * axis, extent, *item.labels.shape[axis + 1 :]))
            for item, extent in zip(traced, extents, strict=True)
        ]
        return Traced(np.concatenate(along, axis=axis), zero)
    if any(axis in item.axes for item in labelled):
        return None
    # Channels along another axis: those of all parts are the same.
    reason = "meets a part without channels in relax.concat"
    computed = [
        (item, static_shape(part) or ())
        for item, part in zip(traced, parts.fields, strict=True)
        if constant_array(part) is None
    ]
    flat = [(item, (*extent[:axis], 1, *extent[axis + 1 :])) for item, extent in computed]
    labels = tracer.agreed(flat, reason)
    if labels is None:
        return None
    for part in parts.fields:
        if constant_array(part) is not None:
            data = next(p for p in parts.fields if tracer.of(p).labelled)
            tracer.use(call, part, labels, "produces", data)
    return Traced(labels, zero)


def _split(tracer: Tracer, call: relax.Call) -> tuple[Traced, ...]:
    traced = tracer.of(call.args[0])
    axis = int(call.attrs.axis) % traced.labels.ndim
    count = len(call.ty.fields)
    if axis not in traced.axes:
        return (traced,) * count
    extents = [(static_shape_of_field(field))[axis] for field in call.ty.fields]
    parts = np.split(traced.labels, np.cumsum(extents)[:-1], axis=axis)
    return tuple(Traced(without_constant_axes(part), traced.zero) for part in parts)


def _strided_slice(tracer: Tracer, call: relax.Call) -> Traced | None:
    traced = tracer.of(call.args[0])
    bounds = slice_bounds(call)
    if bounds is None:
        return None
    labels = traced.labels
    for axis, (begin, end, step) in bounds.items():
        if axis not in traced.axes:
            continue
        if step != 1:
            return None
        labels = labels.take(range(begin, end), axis=axis)
    return Traced(without_constant_axes(labels), traced.zero)


def slice_bounds(call: relax.Call) -> dict[int, tuple[int, int, int]] | None:
    """Begin, end and step of a `strided_slice` by axis, within the extents; None if unknown."""
    shape = static_shape(call.args[0]) or ()
    if not all(isinstance(argument, relax.Tuple) for argument in call.args[1:]):
        return None
    axes, begins, ends, *steps = (integers(argument.fields) for argument in call.args[1:])
    found = {}
    for position, axis in enumerate(axes):
        step = steps[0][position] if steps else 1
        window = slice(begins[position], ends[position], step)
        found[axis % len(shape)] = window.indices(shape[axis % len(shape)])
    return found


def _pad(tracer: Tracer, call: relax.Call) -> Traced | None:
    traced = tracer.of(call.args[0])
    widths = np.reshape(integers(call.attrs.pad_width), (-1, 2))
    constant = str(call.attrs.pad_mode) == "constant"
    zero = traced.zero and not (constant and float(call.attrs.pad_value))
    labels = traced.labels
    for axis in traced.axes:
        if not widths[axis].any():
            continue
        if not constant or len(traced.axes) > 1:
            return None
        # What is added becomes channels of its own, free to go with what it meets.
        added = tracer.labels.fresh(int(widths[axis].sum()))
        before, after = np.split(added, [widths[axis][0]])
        joined = np.concatenate([before, labels.reshape(-1), after])
        labels = joined.reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
    return Traced(labels, zero)


def static_shape_of_field(ty: relax.TensorType) -> tuple[int, ...]:
    """The extents of one tensor of a tuple."""
    return tuple(int(extent) for extent in ty.shape.values)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "relax.reshape",
            "relax.flatten",
            "relax.squeeze",
            "relax.expand_dims",
            "relax.nn.batch_flatten",
        ),
        _reshape,
    ),
    "relax.permute_dims": _permute,
    "relax.broadcast_to": _broadcast_to,
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.nn.pad": _pad,
}
