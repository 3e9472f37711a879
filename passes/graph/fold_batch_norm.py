"""Batch normalisation, and any other affine map per channel, folded into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_type,
    operator_name,
    static_shape,
)
from tinsmith.targets.half_weights import half_dtype

_ARITHMETIC = frozenset({"relax.add", "relax.subtract", "relax.multiply", "relax.divide"})


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Fold batch normalisation and constant affine maps per channel into linear operators.

    Before::

        c: (1, 16, 8, 8) = conv2d(x: (1, 3, 10, 10), const w: (16, 3, 3, 3))
        t = batch_norm(c, const gamma, beta, mean, variance: (16,), axis=1)
        y: (1, 16, 8, 8) = t[0]

    After, with s = gamma / sqrt(variance + epsilon)::

        c: (1, 16, 8, 8) = conv2d(x, const w * s: (16, 3, 3, 3))
        y: (1, 16, 8, 8) = add(c, const beta - mean * s: (1, 16, 1, 1))

    `add`, `subtract`, `multiply` and `divide` by constants that vary along the
    output channels only (or not at all) are folded in the same way, and chains
    of them collapse into one scale in the weights and one `add`. The linear
    operators are `conv1d`, `conv2d`, `conv3d` and `conv2d_transpose` of any
    group count, and `matmul` with a constant right-hand matrix. The new weights
    are computed in float64.

    A batch normalisation that follows nothing linear becomes `multiply` and
    `add`. Left alone: factors behind weights that 16 bits hold exactly (the product would
    not be, and take twice the memory), a linear operator whose result is used elsewhere too,
    batch normalisation with parameters that are not constant, and integers.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Folder(_BatchNormExpander(module).run()).run()


class _BatchNormExpander(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if not isinstance(value, relax.TupleGetItem) or value.index != 0:
            return value
        norm = self.definition(value.tuple_value)
        # The attribute `training` is set by the front end even for inference; the running
        # statistics are what an inference module has.
        if operator_name(norm) != "relax.nn.batch_norm":
            return value
        shape = static_shape(norm.args[0])
        parameters = [constant_array(argument) for argument in norm.args[1:5]]
        if shape is None or any(parameter is None for parameter in parameters):
            return value
        gamma, beta, mean, variance = (np.asarray(p, dtype=np.float64) for p in parameters)
        if not norm.attrs.scale:
            gamma = np.ones_like(mean)
        if not norm.attrs.center:
            beta = np.zeros_like(mean)
        scale = gamma / np.sqrt(variance + float(norm.attrs.epsilon))
        along = [1] * len(shape)
        along[int(norm.attrs.axis)] = scale.size
        dtype = str(element_type(norm.args[0]))
        scaled = self.emit(
            relax.op.multiply(norm.args[0], constant(scale.reshape(along).astype(dtype)))
        )
        shift = (beta - mean * scale).reshape(along).astype(dtype)
        return relax.op.add(scaled, constant(shift))


@dataclass(frozen=True)
class _Linear:
    """A linear operator with constant weights, and the constant that is added to its result.

    `bias` is `[channels]` in float64 or None; `channel_axis` is that of the result.
    """

    call: relax.Call
    weights: np.ndarray
    bias: np.ndarray | None
    channel_axis: int
    channels: int

    def scaled_weights(self, scale: np.ndarray) -> np.ndarray:
        """The weights that give `scale[channel]` times the result."""
        name = operator_name(self.call)
        weights = self.weights.astype(np.float64)
        if name == "relax.matmul":
            return weights * scale
        layout = str(self.call.attrs.kernel_layout)
        along = [1] * weights.ndim
        if "transpose" not in str(name):
            along[layout.index("O")] = -1
            return weights * scale.reshape(along)
        # Transposed: [I, O/groups, ...]; input channels of group g only feed its own outputs.
        groups = int(self.call.attrs.groups)
        along[layout.index("O")] = self.channels // groups
        by_group = np.split(weights, groups, axis=layout.index("I"))
        scales = scale.reshape(groups, -1)
        return np.concatenate(
            [part * s.reshape(along) for part, s in zip(by_group, scales, strict=True)],
            axis=layout.index("I"),
        )


class _Folder(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        if name not in _ARITHMETIC or not str(element_type(value)).startswith("float"):
            return value
        linear = self._linear(value.args[0])
        if linear is None or static_shape(value) != static_shape(value.args[0]):
            return value
        operand = constant_array(value.args[1])
        if operand is None:
            return value
        rank = len(static_shape(value) or ())
        vector = _per_channel(operand, rank, linear.channel_axis, linear.channels)
        if vector is None:
            return value
        if name in ("relax.add", "relax.subtract"):
            if linear.bias is None and name == "relax.add":
                return value
            shift = vector if name == "relax.add" else -vector
            bias = shift if linear.bias is None else linear.bias + shift
            return self._rebuilt(linear, None, bias)
        if half_dtype(linear.weights) is not None:
            return value
        if name == "relax.divide":
            if not vector.all():
                return value
            vector = 1.0 / vector
        return self._rebuilt(linear, vector, None if linear.bias is None else linear.bias * vector)

    def _linear(self, expr: relax.Expr) -> _Linear | None:
        """The linear operator, bias included, whose result `expr` is and nobody else reads."""
        if self.use_count(expr) != 1:
            return None
        value = self.definition(expr)
        bias = None
        if operator_name(value) == "relax.add":
            bias = constant_array(value.args[1])
            producer = value.args[0]
            if bias is None or self.use_count(producer) != 1:
                return None
            if static_shape(producer) != static_shape(value):
                return None
            value = self.definition(producer)
        found = _linear_call(value)
        if found is None or bias is None:
            return found
        rank = len(static_shape(value) or ())
        vector = _per_channel(bias, rank, found.channel_axis, found.channels)
        if vector is None:
            return None
        return _Linear(found.call, found.weights, vector, found.channel_axis, found.channels)

    def _rebuilt(
        self, linear: _Linear, scale: np.ndarray | None, bias: np.ndarray | None
    ) -> relax.Expr:
        call = linear.call
        dtype = str(element_type(call))
        if scale is not None:
            weights = constant(linear.scaled_weights(scale).astype(linear.weights.dtype))
            call = relax.Call(call.op, [call.args[0], weights], call.attrs, call.ty_args)
        if bias is None:
            return call
        along = [1] * len(static_shape(linear.call) or ())
        along[linear.channel_axis] = linear.channels
        result = self.emit(call)
        # What is bound here is read by the addition made below, and by nothing else.
        self._uses[result] = 1
        return relax.op.add(result, constant(bias.reshape(along).astype(dtype)))


def _linear_call(value: Any) -> _Linear | None:
    name = operator_name(value)
    shape = static_shape(value) if value is not None else None
    if name is None or shape is None:
        return None
    if name == "relax.matmul":
        weights = constant_array(value.args[1])
        if weights is None or weights.ndim != 2 or len(static_shape(value.args[0]) or ()) < 2:
            return None
        return _Linear(value, weights, None, len(shape) - 1, shape[-1])
    if name in (
        "relax.nn.conv1d",
        "relax.nn.conv2d",
        "relax.nn.conv3d",
        "relax.nn.conv2d_transpose",
    ):
        weights = constant_array(value.args[1])
        axis = str(value.attrs.out_layout or value.attrs.data_layout).index("C")
        return None if weights is None else _Linear(value, weights, None, axis, shape[axis])
    return None


def _per_channel(operand: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """`operand` as `[channels]` in float64 if it varies along `axis` of a `rank`-d tensor only."""
    if operand.ndim > rank:
        return None
    shape = (1,) * (rank - operand.ndim) + operand.shape
    if any(extent != 1 for position, extent in enumerate(shape) if position != axis):
        return None
    return np.broadcast_to(operand.reshape(-1).astype(np.float64), (channels,))
