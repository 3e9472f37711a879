"""How each operator is computed on tensors that are stored permuted.

A rule takes the rewriter and the call as the module means it, and answers the
result in stored order, or None if the operator has to see its operands in the
order they are meant. Calls may be answered unbound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tinsmith.passes.graph.permutation import Permuted, reshape_stored
from tinsmith.passes.graph.tensors import (
    constant_array,
    element_count,
    integers,
    inverse_permutation,
    static_shape,
)

if TYPE_CHECKING:
    from tinsmith.passes.graph.cancel_transposes import PermutationRewriter

Rule = Callable[["PermutationRewriter", relax.Call], "Permuted | tuple[Permuted, ...] | None"]


def _with_operands(call: relax.Call, *operands: relax.Expr) -> relax.Call:
    """The same call on other leading operands."""
    arguments = [*operands, *call.args[len(operands) :]]
    return relax.Call(call.op, arguments, call.attrs, call.ty_args)


def _permute(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    if static_shape(call) is None:
        return None
    source = rewriter.held(call.args[0])
    rank = len(source.axes)
    axes = (
        tuple(reversed(range(rank)))
        if call.attrs.axes is None
        else tuple(axis % rank for axis in integers(call.attrs.axes))
    )
    return Permuted(source.stored, tuple(source.axes[axis] for axis in axes))


def _elementwise(rewriter: PermutationRewriter, call: relax.Call) -> Permuted:
    source = rewriter.held(call.args[0])
    return Permuted(_with_operands(call, source.stored), source.axes)


def _conversion(rewriter: PermutationRewriter, call: relax.Call) -> Permuted:
    """`quantize` and `dequantize`: elementwise, with parameters of one axis or one element."""
    source = rewriter.held(call.args[0])
    convert = getattr(relax.op, str(call.op.name).removeprefix("relax."))
    axis = source.axes[int(call.attrs.axis) % len(source.axes)] if source.axes else -1
    # Scales may be computed at run time, as those of dynamic quantisation are.
    parameters = map(rewriter.substitute, call.args[1:])
    converted = convert(source.stored, *parameters, axis, str(call.attrs.out_dtype))
    return Permuted(converted, source.axes)


def _common_axes(rewriter: PermutationRewriter, operands: Sequence[Permuted]) -> tuple[int, ...]:
    """The storage order that costs the fewest transposed elements; permuted wins a draw."""

    def cost(axes: tuple[int, ...]) -> tuple[int, bool]:
        moved = sum(
            element_count(operand.meant_shape)
            for operand in operands
            if not rewriter.permutes_for_free(operand, axes)
        )
        return moved, axes == tuple(range(len(axes)))

    # Constants and small operands follow; candidates are the orders that occur.
    return min((operand.axes for operand in operands), key=cost)


def _broadcasting(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    shape = static_shape(call)
    if shape is None or any(static_shape(operand) is None for operand in call.args):
        return None
    held: list[Permuted | None] = []
    for operand in call.args:
        value = rewriter.held(operand)
        missing = len(shape) - len(value.axes)
        if missing and constant_array(value.stored) is not None and not value.axes:
            held.append(None)  # a scalar fits every order
        elif missing:
            meant = rewriter.as_meant(value)
            lifted = rewriter.reshaped(meant, (1,) * missing + value.meant_shape)
            held.append(Permuted(lifted, tuple(range(len(shape)))))
        else:
            held.append(value)
    tensors = [value for value in held if value is not None]
    varying = [v for v in tensors if constant_array(v.stored) is None] or tensors
    axes = _common_axes(rewriter, varying)
    operands = [
        operand if value is None else rewriter.stored_like(value, axes)
        for operand, value in zip(call.args, held, strict=True)
    ]
    return Permuted(_with_operands(call, *operands), axes)


def _concat(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    shape = static_shape(call)
    if shape is None or not isinstance(call.args[0], relax.Tuple) or call.attrs.axis is None:
        return None
    parts = [rewriter.held(field) for field in call.args[0].fields]
    axes = _common_axes(rewriter, parts)
    fields = [rewriter.stored_like(part, axes) for part in parts]
    axis = axes[int(call.attrs.axis) % len(shape)]
    return Permuted(relax.op.concat(fields, axis), axes)


def _split(rewriter: PermutationRewriter, call: relax.Call) -> tuple[Permuted, ...] | None:
    source = rewriter.held(call.args[0])
    axis = source.axes[int(call.attrs.axis) % len(source.axes)]
    sections = call.attrs.indices_or_sections
    where = [int(s) for s in sections] if hasattr(sections, "__len__") else int(sections)
    parts = rewriter.emit(relax.op.split(source.stored, where, axis))
    return tuple(
        Permuted(rewriter.emit(relax.TupleGetItem(parts, index)), source.axes)
        for index in range(len(call.ty.fields))
    )


def _without_axes(axes: Sequence[int], removed: set[int]) -> tuple[int, ...]:
    """The order of the remaining axes when the meant axes in `removed` are gone."""
    kept = [axes[meant] for meant in range(len(axes)) if meant not in removed]
    ranks = sorted(kept)
    return tuple(ranks.index(axis) for axis in kept)


def _reduction(operator: Callable[..., relax.Expr]) -> Rule:
    def rule(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
        source = rewriter.held(call.args[0])
        rank = len(source.axes)
        if call.attrs.axis is None:
            meant = list(range(rank))
        else:
            found = call.attrs.axis
            listed = integers(found) if hasattr(found, "__len__") else (int(found),)
            meant = [axis % rank for axis in listed]
        stored = sorted(source.axes[axis] for axis in meant)
        keep = bool(call.attrs.keepdims)
        axes = source.axes if keep else _without_axes(source.axes, set(meant))
        return Permuted(operator(source.stored, stored, keepdims=keep), axes)

    return rule


def _arg_reduction(operator: Callable[..., relax.Expr]) -> Rule:
    def rule(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
        source = rewriter.held(call.args[0])
        if call.attrs.axis is None:
            return None
        meant = int(call.attrs.axis) % len(source.axes)
        keep = bool(call.attrs.keepdims)
        axes = source.axes if keep else _without_axes(source.axes, {meant})
        return Permuted(operator(source.stored, source.axes[meant], keepdims=keep), axes)

    return rule


def _softmax(operator: Callable[..., relax.Expr]) -> Rule:
    def rule(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
        source = rewriter.held(call.args[0])
        axis = source.axes[int(call.attrs.axis) % len(source.axes)]
        # Over an inner axis it would read memory in strides; transposing first costs less.
        if axis != len(source.axes) - 1:
            return None
        return Permuted(operator(source.stored, axis), source.axes)

    return rule


def _layer_norm(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source = rewriter.held(call.args[0])
    rank = len(source.axes)
    axes = [source.axes[axis % rank] for axis in integers(call.attrs.axes)]
    if axes != list(range(rank - len(axes), rank)):
        return None
    normalized = relax.op.nn.layer_norm(
        source.stored,
        *(rewriter.substitute(argument) for argument in call.args[1:]),
        axes=axes,
        epsilon=float(call.attrs.epsilon),
        center=bool(call.attrs.center),
        scale=bool(call.attrs.scale),
    )
    return Permuted(normalized, source.axes)


def _prelu(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source = rewriter.held(call.args[0])
    axis = source.axes[int(call.attrs.axis) % len(source.axes)]
    slope = rewriter.substitute(call.args[1])
    return Permuted(relax.op.nn.prelu(source.stored, slope, axis), source.axes)


def _padding(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source = rewriter.held(call.args[0])
    widths = np.reshape(integers(call.attrs.pad_width), (-1, 2))
    stored = widths[list(inverse_permutation(source.axes))].reshape(-1).tolist()
    padded = relax.op.nn.pad(
        source.stored, stored, call.attrs.pad_mode, float(call.attrs.pad_value)
    )
    return Permuted(padded, source.axes)


def _strided_slice(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source = rewriter.held(call.args[0])
    if not all(isinstance(argument, relax.Tuple) for argument in call.args[1:]):
        return None
    numbers = [[int(value) for value in argument.fields] for argument in call.args[1:]]
    axes = [source.axes[axis % len(source.axes)] for axis in numbers[0]]
    sliced = relax.op.strided_slice(
        source.stored, axes, *numbers[1:], assume_inbound=bool(call.attrs.assume_inbound)
    )
    return Permuted(sliced, source.axes)


def _reshape(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source, target = rewriter.held(call.args[0]), static_shape(call)
    if target is None:
        return None
    found = reshape_stored(source, target)
    if found is None:
        return None
    shape, axes = found
    return Permuted(rewriter.reshaped(source.stored, shape), axes)


def _broadcast_to(rewriter: PermutationRewriter, call: relax.Call) -> Permuted | None:
    source, target = rewriter.held(call.args[0]), static_shape(call)
    if target is None or len(target) != len(source.axes):
        return None
    stored = [target[axis] for axis in inverse_permutation(source.axes)]
    return Permuted(relax.op.broadcast_to(source.stored, stored), source.axes)


ELEMENTWISE = frozenset(
    {
        "relax.abs",
        "relax.acos",
        "relax.acosh",
        "relax.asin",
        "relax.asinh",
        "relax.atan",
        "relax.atanh",
        "relax.astype",
        "relax.bitwise_not",
        "relax.ceil",
        "relax.clip",
        "relax.cos",
        "relax.cosh",
        "relax.erf",
        "relax.exp",
        "relax.floor",
        "relax.isfinite",
        "relax.isinf",
        "relax.isnan",
        "relax.log",
        "relax.logical_not",
        "relax.negative",
        "relax.round",
        "relax.rsqrt",
        "relax.sigmoid",
        "relax.sign",
        "relax.sin",
        "relax.sinh",
        "relax.square",
        "relax.sqrt",
        "relax.tan",
        "relax.tanh",
        "relax.trunc",
        "relax.nn.gelu",
        "relax.nn.gelu_tanh",
        "relax.nn.leakyrelu",
        "relax.nn.relu",
        "relax.nn.relu6",
        "relax.nn.selu",
        "relax.nn.silu",
        "relax.nn.softplus",
    }
)

BROADCASTING = frozenset(
    {
        "relax.add",
        "relax.subtract",
        "relax.multiply",
        "relax.divide",
        "relax.floor_divide",
        "relax.mod",
        "relax.floor_mod",
        "relax.power",
        "relax.maximum",
        "relax.minimum",
        "relax.equal",
        "relax.not_equal",
        "relax.less",
        "relax.less_equal",
        "relax.greater",
        "relax.greater_equal",
        "relax.logical_and",
        "relax.logical_or",
        "relax.logical_xor",
        "relax.bitwise_and",
        "relax.bitwise_or",
        "relax.bitwise_xor",
        "relax.left_shift",
        "relax.right_shift",
        "relax.where",
    }
)

PERMUTATION_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    "relax.quantize": _conversion,
    "relax.dequantize": _conversion,
    "relax.permute_dims": _permute,
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.sum": _reduction(relax.op.sum),
    "relax.mean": _reduction(relax.op.mean),
    "relax.max": _reduction(relax.op.max),
    "relax.min": _reduction(relax.op.min),
    "relax.prod": _reduction(relax.op.prod),
    "relax.variance": _reduction(relax.op.variance),
    "relax.std": _reduction(relax.op.std),
    "relax.argmax": _arg_reduction(relax.op.argmax),
    "relax.argmin": _arg_reduction(relax.op.argmin),
    "relax.nn.softmax": _softmax(relax.op.nn.softmax),
    "relax.nn.log_softmax": _softmax(relax.op.nn.log_softmax),
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.prelu": _prelu,
    "relax.nn.pad": _padding,
    "relax.strided_slice": _strided_slice,
    "relax.reshape": _reshape,
    "relax.broadcast_to": _broadcast_to,
}
