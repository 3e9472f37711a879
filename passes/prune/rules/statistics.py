"""Channels through normalisations, reductions, pooling and resizing."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import constant_array, integers, operator_name
from tinsmith.passes.prune.labels import Traced, unlabelled
from tinsmith.passes.prune.tracer import Rule, Tracer


def _constant_parameters(call: relax.Call) -> bool:
    return all(constant_array(argument) is not None for argument in call.args[1:])


def _channel_axis(call: relax.Call) -> int:
    return str(call.attrs.layout).index("C")


def _batch_norm(tracer: Tracer, call: relax.Call) -> tuple[Traced, ...] | None:
    if not _constant_parameters(call):
        return None
    traced = tracer.of(call.args[0])
    axis = int(call.attrs.axis) % traced.labels.ndim
    traced = tracer.whole(traced, (axis,), "is normalised by relax.nn.batch_norm")
    for parameter in call.args[1:]:
        tracer.use(call, parameter, traced.labels.reshape(-1), "produces", call.args[0])
    return Traced(traced.labels), unlabelled(1), unlabelled(1)


def _layer_norm(tracer: Tracer, call: relax.Call) -> Traced | None:
    """Whoever removes channels here changes the mean and the variance of the others."""
    if not _constant_parameters(call):
        return None
    traced = tracer.of(call.args[0])
    rank = traced.labels.ndim
    axes = sorted(axis % rank for axis in integers(call.attrs.axes))
    if not any(axis in axes for axis in traced.axes):
        return Traced(traced.labels, zero=False)
    if axes != list(range(axes[0], rank)) or not all(axis in axes for axis in traced.axes):
        return None
    tracer.labels.mark_inexact(traced.labels, f"statistics of {operator_name(call)}")
    for parameter in call.args[1:]:
        tracer.use(call, parameter, traced.labels, "produces", call.args[0])
    return Traced(traced.labels)


def _group_norm(tracer: Tracer, call: relax.Call) -> Traced | None:
    """Whole groups of a group normalisation are removed: the others keep their statistics."""
    if not _constant_parameters(call):
        return None
    groups = int(getattr(call.attrs, "num_groups", 0))
    traced = tracer.of(call.args[0])
    axis = int(getattr(call.attrs, "channel_axis", 1)) % traced.labels.ndim
    reason = f"is normalised by {operator_name(call)}"
    traced = tracer.whole(traced, (axis,), reason)
    if not traced.labelled:
        return traced
    if groups:
        by_group = traced.labels.reshape(groups, -1)
        tracer.labels.unite(by_group, by_group[:, :1], reason)
    for parameter in call.args[1:]:
        tracer.use(call, parameter, traced.labels.reshape(-1), "produces", call.args[0])
    return Traced(traced.labels)


def _softmax(tracer: Tracer, call: relax.Call) -> Traced | None:
    traced = tracer.of(call.args[0])
    if int(call.attrs.axis) % traced.labels.ndim in traced.axes:
        return None
    return Traced(traced.labels, zero=False)


def _reduction(tracer: Tracer, call: relax.Call) -> Traced | None:
    """Along axes without channels; a sum may also run over channels, if these become 0."""
    traced = tracer.of(call.args[0])
    rank = traced.labels.ndim
    axes = (
        tuple(range(rank))
        if call.attrs.axis is None
        else tuple(axis % rank for axis in integers(call.attrs.axis))
    )
    keep = bool(call.attrs.keepdims)
    if any(axis in axes for axis in traced.axes):
        summed = operator_name(call) == "relax.sum" and traced.zero
        return unlabelled(rank if keep else rank - len(axes)) if summed else None
    labels = traced.labels if keep else np.squeeze(traced.labels, axes)
    return Traced(labels, traced.zero and operator_name(call) != "relax.prod")


def _spatial(tracer: Tracer, call: relax.Call) -> Traced:
    """Pooling and resizing: every channel on its own."""
    traced = tracer.of(call.args[0])
    return tracer.whole(traced, (0, _channel_axis(call)), f"is resampled by {operator_name(call)}")


_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool")

RULES: dict[str, Rule] = {
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.rms_norm": _layer_norm,
    "relax.nn.group_norm": _group_norm,
    "relax.nn.instance_norm": _group_norm,
    "relax.nn.softmax": _softmax,
    "relax.nn.log_softmax": _softmax,
    **{
        f"relax.{name}": _reduction
        for name in ("sum", "mean", "max", "min", "prod", "variance", "std")
    },
    **{f"relax.nn.{pool}{rank}d": _spatial for pool in _POOLS for rank in (1, 2, 3)},
    "relax.image.resize2d": _spatial,
}
