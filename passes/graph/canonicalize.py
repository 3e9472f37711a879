"""Canonical form: one spelling for each thing, and nothing that does nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    constant_scalar,
    element_type,
    integers,
    moves_only_unit_axes,
    operator_name,
    static_shape,
)

_RESHAPES = frozenset({"relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten"})
_COMMUTATIVE = frozenset({"relax.add", "relax.multiply", "relax.maximum", "relax.minimum"})
# A kernel that joins tensors asks for each element whose it is, in conditions one inside the other.
_MOST_PARTS = 64


@tvm.transform.module_pass(opt_level=0, name="Canonicalize")
class Canonicalize:
    """Bring every function into the form that the other passes expect.

    Before::

        a: (1, 8, 1, 1) = maximum(const 0., x: (1, 8, 1, 1))
        b: (1, 8, 1, 1) = minimum(a, const 6.)
        c: (1, 8) = squeeze(b, axis=[2, 3])
        d = dropout(c, rate=0.5)
        e: (1, 8) = d[0]
        f: (8, 1) = permute_dims(e, axes=[1, 0])

    After::

        b: (1, 8, 1, 1) = clip(x, 0, 6)
        f: (8, 1) = reshape(b, (8, 1))

    The rules: `squeeze`, `expand_dims`, `flatten` and permutations that move
    only axes of extent 1 become `reshape`; chains of reshapes, of permutations
    and of casts that lose nothing are joined; what changes nothing (dropout,
    identity reshape, permutation, cast, broadcast, padding and concatenation,
    multiplication or division by 1, subtraction of 0) disappears; constants
    stand on the right of commutative operators; `minimum(maximum(x, low), high)`
    with constant bounds becomes `clip`, a maximum with 0 `relu`; `power(x, 2)`
    becomes `multiply(x, x)` and `power(x, 0.5)` `sqrt`; division by a constant 0
    becomes `multiply(x, inf)`; pooling everything to one pixel becomes `mean`;
    a concatenation of more than 64 tensors becomes one of concatenations.

    Left alone: addition of 0 (it changes the sign of -0), and everything with
    a symbolic shape.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        # Everything pure goes into dataflow blocks, as large as they can be.
        module = relax.transform.ConvertToDataflow(min_size=1)(module)
        return relax.transform.CanonicalizeBindings()(_Canonicalizer(module).run())


class _Canonicalizer(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem):
            return self._tuple_item(value)
        name = operator_name(value)
        if name is None:
            return value
        if name in _RESHAPES:
            return self._reshape(value)
        if name in _COMMUTATIVE and self._constant_on_the_left(value):
            value = self._builder.normalize(
                relax.Call(value.op, [value.args[1], value.args[0]], value.attrs, value.ty_args)
            )
        rule = _RULES.get(name)
        return value if rule is None else rule(self, value)

    @staticmethod
    def _constant_on_the_left(call: relax.Call) -> bool:
        return constant_array(call.args[0]) is not None and constant_array(call.args[1]) is None

    def _tuple_item(self, value: relax.TupleGetItem) -> relax.Expr:
        source = self.definition(value.tuple_value)
        if operator_name(source) == "relax.nn.dropout" and value.index == 0:
            return source.args[0]
        return source.fields[value.index] if isinstance(source, relax.Tuple) else value

    def _reshape(self, call: relax.Call) -> relax.Expr:
        shape = static_shape(call)
        if shape is None:
            return call
        source = call.args[0]
        inner = self.definition(source)
        if operator_name(inner) == "relax.reshape":
            source = inner.args[0]
        if static_shape(source) == shape:
            return source
        return relax.op.reshape(source, shape)

    def permute(self, call: relax.Call) -> relax.Expr:
        source = call.args[0]
        shape = static_shape(source)
        if shape is None:
            return call
        axes = _permutation(call, len(shape))
        inner = self.definition(source)
        if operator_name(inner) == "relax.permute_dims":
            first = _permutation(inner, len(shape))
            source, axes = inner.args[0], tuple(first[axis] for axis in axes)
            shape = static_shape(source) or ()
        if axes == tuple(range(len(axes))):
            return source
        if moves_only_unit_axes(shape, axes):
            return self._reshape(
                self._builder.normalize(relax.op.reshape(source, [shape[axis] for axis in axes]))
            )
        return relax.op.permute_dims(source, axes)

    def cast(self, call: relax.Call) -> relax.Expr:
        return call.args[0] if element_type(call.args[0]) == element_type(call) else call

    def same_shape(self, call: relax.Call) -> relax.Expr:
        shape = static_shape(call)
        return call.args[0] if shape is not None and static_shape(call.args[0]) == shape else call

    def padding(self, call: relax.Call) -> relax.Expr:
        return call.args[0] if not any(integers(call.attrs.pad_width)) else call

    def concatenation(self, call: relax.Call) -> relax.Expr:
        parts = call.args[0]
        if not isinstance(parts, relax.Tuple):
            return call
        fields = list(parts.fields)
        if len(fields) == 1:
            return fields[0]
        if len(fields) <= _MOST_PARTS:
            return call
        axis = int(call.attrs.axis)
        while len(fields) > _MOST_PARTS:
            groups = [fields[i : i + _MOST_PARTS] for i in range(0, len(fields), _MOST_PARTS)]
            fields = [
                self.emit(relax.op.concat(group, axis)) if len(group) > 1 else group[0]
                for group in groups
            ]
        return relax.op.concat(fields, axis)

    def scaling(self, call: relax.Call) -> relax.Expr:
        neutral = constant_scalar(call.args[1]) == 1.0
        return call.args[0] if neutral and self._keeps_shape(call) else call

    def division(self, call: relax.Call) -> relax.Expr:
        divisor = constant_array(call.args[1])
        if divisor is None or divisor.size != 1 or divisor.dtype.kind != "f" or divisor.any():
            return self.scaling(call)
        # TVM refuses to divide by a literal 0; x * inf is x / 0 for every x, 0 and NaN too.
        infinity = np.copysign(np.inf, divisor).astype(divisor.dtype)
        return relax.op.multiply(call.args[0], constant(infinity))

    def subtraction(self, call: relax.Call) -> relax.Expr:
        neutral = constant_scalar(call.args[1]) == 0.0
        return call.args[0] if neutral and self._keeps_shape(call) else call

    @staticmethod
    def _keeps_shape(call: relax.Call) -> bool:
        shape = static_shape(call)
        return shape is not None and static_shape(call.args[0]) == shape

    def maximum(self, call: relax.Call) -> relax.Expr:
        low = self._float_bound(call)
        if low is None:
            return call
        inner = self.definition(call.args[0])
        if operator_name(inner) == "relax.minimum" and self.use_count(call.args[0]) == 1:
            high = self._float_bound(inner)
            if high is not None and low <= high:
                return relax.op.clip(inner.args[0], low, high)
        return relax.op.nn.relu(call.args[0]) if low == 0.0 else call

    def minimum(self, call: relax.Call) -> relax.Expr:
        high = self._float_bound(call)
        inner = self.definition(call.args[0])
        if high is None or self.use_count(call.args[0]) != 1:
            return call
        low = None
        if operator_name(inner) == "relax.nn.relu":
            low = 0.0
        elif operator_name(inner) == "relax.maximum":
            low = self._float_bound(inner)
        return call if low is None or low > high else relax.op.clip(inner.args[0], low, high)

    def _float_bound(self, call: relax.Call) -> float | None:
        bound = constant_scalar(call.args[1])
        if bound is None or math.isnan(bound) or not self._keeps_shape(call):
            return None
        return bound if str(element_type(call)).startswith("float") else None

    def power(self, call: relax.Call) -> relax.Expr:
        exponent = constant_scalar(call.args[1])
        if not self._keeps_shape(call) or not str(element_type(call)).startswith("float"):
            return call
        if exponent == 2.0:
            return relax.op.multiply(call.args[0], call.args[0])
        return relax.op.sqrt(call.args[0]) if exponent == 0.5 else call

    def adaptive_pool(self, call: relax.Call) -> relax.Expr:
        size = call.attrs.output_size
        if size is None or set(integers(size)) != {1}:
            return call
        axes = [axis for axis, letter in enumerate(call.attrs.layout) if letter in "DHW"]
        return relax.op.mean(call.args[0], axes, keepdims=True)


def _permutation(call: relax.Call, rank: int) -> tuple[int, ...]:
    axes = call.attrs.axes
    if axes is None:
        return tuple(reversed(range(rank)))
    return tuple(axis % rank for axis in integers(axes))


_RULES: dict[str, Callable[[_Canonicalizer, relax.Call], relax.Expr]] = {
    "relax.permute_dims": _Canonicalizer.permute,
    "relax.astype": _Canonicalizer.cast,
    "relax.broadcast_to": _Canonicalizer.same_shape,
    "relax.nn.pad": _Canonicalizer.padding,
    "relax.concat": _Canonicalizer.concatenation,
    "relax.multiply": _Canonicalizer.scaling,
    "relax.divide": _Canonicalizer.division,
    "relax.subtract": _Canonicalizer.subtraction,
    "relax.maximum": _Canonicalizer.maximum,
    "relax.minimum": _Canonicalizer.minimum,
    "relax.power": _Canonicalizer.power,
    "relax.nn.adaptive_avg_pool1d": _Canonicalizer.adaptive_pool,
    "relax.nn.adaptive_avg_pool2d": _Canonicalizer.adaptive_pool,
    "relax.nn.adaptive_avg_pool3d": _Canonicalizer.adaptive_pool,
}
