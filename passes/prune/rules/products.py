"""Channels through convolutions, matrix products and tables of embeddings."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.tensors import constant_array, element_count, operator_name, static_shape
from tinsmith.passes.prune.labels import Traced
from tinsmith.passes.prune.tracer import Rule, Tracer


def _along(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A vector as an array of `rank` axes that varies along one."""
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def channels_of(tracer: Tracer, operand: relax.Expr, axis: int, reason: str) -> np.ndarray:
    """The label of each position along one axis; whatever lies along others goes together."""
    traced = tracer.whole(tracer.of(operand), (axis,), reason)
    extent = (static_shape(operand) or ())[axis]
    return np.broadcast_to(traced.labels.reshape(-1), (extent,))


def _convolution(tracer: Tracer, call: relax.Call) -> Traced | None:
    """Dense convolutions make new channels of their inputs.

    In a grouped one, either whole groups are removed (what comes in with what comes out), or
    the same channels of every group, whichever leaves the choice between more units. A
    depthwise convolution is the case of groups of one channel.
    """
    data, weights = call.args[:2]
    if not isinstance(weights, GenericConst):
        return None
    attrs = call.attrs
    transposed = "transpose" in str(operator_name(call))
    groups, rank = int(attrs.groups), len(static_shape(weights) or ())
    out_axis = str(attrs.out_layout or attrs.data_layout).index("C")
    o_axis, i_axis = (str(attrs.kernel_layout).index(letter) for letter in "OI")
    pixels = f"lies along pixels of {operator_name(call)}"
    inputs = channels_of(tracer, data, str(attrs.data_layout).index("C"), pixels)
    outputs = (static_shape(call) or ())[out_axis]
    by_group = inputs.reshape(groups, -1)
    reason = f"is read in groups by {operator_name(call)}"
    if 1 < groups >= by_group.shape[1]:
        tracer.labels.unite(by_group, by_group[:, :1], reason)
        made = np.repeat(by_group[:, 0], outputs // groups)
        along = inputs if transposed else made
        tracer.use(
            call, weights, _along(along, i_axis if transposed else o_axis, rank), "produces", data
        )
        return Traced(_along(made, out_axis, rank))
    tracer.labels.unite(by_group, by_group[:1], reason)
    fresh = tracer.labels.fresh(outputs // groups)
    made = np.tile(fresh, groups)
    read, written = (inputs, fresh) if transposed else (by_group[0], made)
    tracer.use(call, weights, _along(read, i_axis, rank), "consumes", data, tracer.of(data).zero)
    tracer.use(call, weights, _along(written, o_axis, rank), "produces", data)
    return Traced(_along(made, out_axis, rank))


def _matmul(tracer: Tracer, call: relax.Call) -> Traced | None:
    left, right = call.args
    if any(len(static_shape(operand) or ()) < 2 for operand in call.args):
        return None
    if _is_matrix(right):
        return _weighted(tracer, call, left, right, data_axis=-1)
    if _is_matrix(left):
        return _weighted(tracer, call, right, left, data_axis=-2)
    return _computed(tracer, call)


def _is_matrix(expr: relax.Expr) -> bool:
    shape = static_shape(expr) or ()
    return isinstance(expr, GenericConst) and element_count(shape) == element_count(shape[-2:])


def _weighted(
    tracer: Tracer, call: relax.Call, data: relax.Expr, weights: relax.Expr, data_axis: int
) -> Traced | None:
    """A product with weights: new channels along the axis of the data that is summed over."""
    traced, shape = tracer.of(data), static_shape(call) or ()
    summed = traced.labels.ndim + data_axis
    lifted = (1,) * (len(shape) - traced.labels.ndim) + traced.labels.shape
    if traced.axes and summed not in traced.axes:
        # Channels along other axes, of which the product mixes none.
        return Traced(traced.labels.reshape(lifted), traced.zero)
    if len(traced.axes) > 1:
        return None
    rank = len(static_shape(weights) or ())
    # The data's last axis meets the first of a matrix on the right, and the other way round.
    read, written = (rank - 2, rank - 1) if data_axis == -1 else (rank - 1, rank - 2)
    inputs = traced.labels.reshape(-1)
    tracer.use(call, weights, _along(inputs, read, rank), "consumes", data, traced.zero)
    fresh = tracer.labels.fresh(shape[data_axis])
    tracer.use(call, weights, _along(fresh, written, rank), "produces", data)
    return Traced(_along(fresh, len(shape) + data_axis, len(shape)))


def _computed(tracer: Tracer, call: relax.Call) -> Traced | None:
    """A product of two computed matrices.

    Channels along the batch axes (the heads of an attention) go as a whole, with all that is
    computed from them. Without such, channels that are summed over go from both operands.
    """
    rank = len(static_shape(call) or ())
    operands = [tracer.of(operand) for operand in call.args]
    shapes = [static_shape(operand) or () for operand in call.args]
    left, right = (
        Traced(t.labels.reshape((1,) * (rank - t.labels.ndim) + t.labels.shape), t.zero)
        for t in operands
    )
    batch = tuple(range(rank - 2))
    if any(axis in batch for axis in (*left.axes, *right.axes)):
        reason = f"is read in whole matrices by {operator_name(call)}"
        parts = [tracer.whole(traced, batch, reason) for traced in (left, right)]
        extents = [(1,) * (rank - len(s)) + tuple(s[:-2]) + (1, 1) for s in shapes]
        labels = tracer.agreed(list(zip(parts, extents, strict=True)), reason)
        zero = any(traced.labelled and traced.zero for traced in parts)
        return None if labels is None else Traced(labels, zero)
    if len(left.axes) > 1 or len(right.axes) > 1:
        return None
    rows = rank - 2 in left.axes
    columns = rank - 1 in right.axes
    if rows and columns:
        return None
    summed = [
        (Traced(np.swapaxes(right.labels, -1, -2), right.zero) if swap else left)
        for swap in (False, True)
    ]
    extent = (1,) * (rank - 1) + (shapes[0][-1],)
    if not rows and not columns:
        reason = f"is summed over by {operator_name(call)}"
        labels = tracer.agreed([(traced, extent) for traced in summed], reason)
        if labels is not None and not (left.zero or right.zero):
            tracer.labels.mark_inexact(labels, "a product of two tensors that are not zero")
        return Traced(np.zeros((1,) * rank, np.int64), zero=False)
    kept, other = (left, right) if rows else (right, left)
    tracer.labels.freeze(other.labels, f"is summed over by {operator_name(call)}")
    return kept


def _embedding(tracer: Tracer, call: relax.Call) -> Traced | None:
    """`take`: rows of a constant table are new channels; of a computed tensor, its own."""
    table, indices = call.args
    shape = static_shape(call) or ()
    rank = len(static_shape(table) or ())
    axis = None if call.attrs.axis is None else int(call.attrs.axis) % rank
    if constant_array(table) is not None:
        if axis != 0 or rank != 2 or constant_array(indices) is not None:
            return None
        fresh = tracer.labels.fresh(shape[-1])
        tracer.use(call, table, _along(fresh, 1, 2), "produces")
        return Traced(_along(fresh, len(shape) - 1, len(shape)))
    traced = tracer.of(table)
    positions = constant_array(indices)
    if axis is None:
        return None
    width = len(static_shape(indices) or ())
    if axis not in traced.axes:
        labels = traced.labels
        spread = labels.shape[:axis] + (1,) * width + labels.shape[axis + 1 :]
        return Traced(labels.reshape(spread), traced.zero)
    if positions is None or positions.ndim > 1:
        return None
    return Traced(np.take(traced.labels, positions, axis=axis), traced.zero)


RULES: dict[str, Rule] = {
    **{
        f"relax.nn.conv{rank}d{kind}": _convolution
        for rank in (1, 2, 3)
        for kind in ("", "_transpose")
    },
    "relax.matmul": _matmul,
    "relax.take": _embedding,
}
