"""Channels through operators that compute each element from its own position."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tinsmith.passes.graph.permutation_rules import BROADCASTING, ELEMENTWISE
from tinsmith.passes.graph.tensors import constant_array, operator_name, static_shape
from tinsmith.passes.prune.groups import Role
from tinsmith.passes.prune.labels import Traced, unlabelled
from tinsmith.passes.prune.tracer import Rule, Tracer

_KEEP_ZERO = ELEMENTWISE - {
    f"relax.{name}"
    for name in (
        *("acos", "acosh", "cos", "cosh", "exp", "log", "rsqrt", "sigmoid"),
        *("bitwise_not", "isfinite", "logical_not", "nn.softplus"),
    )
}
_INFINITE_AT_ZERO = frozenset({"relax.log", "relax.rsqrt"})
# Zero if all operands are: their constants count as part of what produces a channel.
_SUMS = frozenset({"relax.add", "relax.subtract", "relax.maximum", "relax.minimum"})


def _unary(tracer: Tracer, call: relax.Call) -> Traced:
    traced = tracer.of(call.args[0])
    name = str(operator_name(call))
    if name == "relax.clip":
        low, high = (float(bound.value) for bound in call.args[1:3])
        keeps = low <= 0.0 <= high
    else:
        keeps = name in _KEEP_ZERO
    if name in _INFINITE_AT_ZERO:
        tracer.labels.mark_inexact(traced.labels, f"{name} of zero is infinite")
    return Traced(traced.labels, traced.zero and keeps)


def _broadcasting(tracer: Tracer, call: relax.Call) -> Traced:
    shape = static_shape(call) or ()
    name = str(operator_name(call))
    constants = [argument for argument in call.args if constant_array(argument) is not None]
    computed = [argument for argument in call.args if constant_array(argument) is None]
    labels = (
        tracer.agreed(
            [(tracer.of(operand), static_shape(operand) or ()) for operand in computed],
            f"meets an operand without channels in {name}",
        )
        if computed
        else None
    )
    if labels is None:
        return unlabelled(len(shape))
    # A computed operand that is broadcast may have fewer axes than the constants.
    labels = labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape)
    if name == "relax.divide":
        divisor = tracer.of(call.args[1]).labels
        tracer.labels.mark_inexact(divisor, "relax.divide by zero is infinite")
    role: Role = "produces" if name in _SUMS else "scales"
    data = next(operand for operand in computed if tracer.of(operand).labelled)
    for constant in constants:
        tracer.use(call, constant, labels, role, data)
    return Traced(labels, _is_zero(tracer, call, labels))


def _is_zero(tracer: Tracer, call: relax.Call, labels: np.ndarray) -> bool:
    """Whether the result is 0 where producers are."""
    name = str(operator_name(call))

    def zero(operand: relax.Expr) -> bool:
        array = constant_array(operand)
        if array is None:
            traced = tracer.of(operand)
            return traced.labelled and traced.zero
        # A constant with an element per channel is among the producers.
        extents = (1,) * (labels.ndim - array.ndim) + array.shape
        follows = all(extents[axis] > 1 for axis, n in enumerate(labels.shape) if n > 1)
        return follows or not array.any()

    if name in _SUMS:
        return all(zero(operand) for operand in call.args)
    if name == "relax.multiply":
        return any(zero(o) for o in call.args if constant_array(o) is None)
    return name == "relax.divide" and zero(call.args[0])


def _prelu(tracer: Tracer, call: relax.Call) -> Traced:
    traced = tracer.of(call.args[0])
    axis = int(call.attrs.axis) % traced.labels.ndim
    if constant_array(call.args[1]) is None:
        tracer.freeze(call.args[1], "is the slope of relax.nn.prelu")
    elif axis in traced.axes:
        traced = tracer.whole(traced, (axis,), "has a slope in relax.nn.prelu")
        tracer.use(call, call.args[1], traced.labels.reshape(-1), "scales", call.args[0])
    return traced


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _unary),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    "relax.nn.prelu": _prelu,
}
