"""Reshapes pushed towards the outputs, so that they do not separate what fuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from tinsmith.passes.graph.permutation_rules import BROADCASTING, ELEMENTWISE
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_count,
    integers,
    operator_name,
    static_shape,
)


@tvm.transform.module_pass(opt_level=0, name="SinkReshapes")
class SinkReshapes:
    """Compute on tensors in the shape in which they were produced; matrix products on matrices.

    Before::

        a: (1, 128, 64) = reshape(x: (128, 64), (1, 128, 64))
        b: (1, 128, 64) = add(a, const (64,))
        c: (1, 128, 64) = gelu(b)
        d: (1, 128, 32) = matmul(c, const w: (64, 32))

    After::

        b: (128, 64) = add(x, const (64,))
        c: (128, 64) = gelu(b)
        e: (128, 32) = matmul(c, const w: (64, 32))
        d: (1, 128, 32) = reshape(e, (1, 128, 32))

    A reshape copies nothing, but it ends a fused kernel; so it is remembered
    and applied where a reader depends on the shape. Elementwise operators
    (broadcasting included, where the axes that matter come through unchanged),
    layer normalisation and softmax over unchanged trailing axes are computed in
    the older shape. A product of a batch of matrices with one matrix becomes a
    product of two matrices.

    Left alone: symbolic shapes, and all operators not named here.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Sinker(module).run()


@dataclass(frozen=True)
class _Reshaped:
    """A tensor that is meant to be `reshape(stored, shape)`."""

    stored: relax.Expr
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return static_shape(self.stored) or ()

    @property
    def is_plain(self) -> bool:
        return self.stored_shape == self.shape

    @property
    def common_trailing(self) -> int:
        """Number of trailing axes that are the same stored and meant."""
        count = 0
        for stored, meant in zip(reversed(self.stored_shape), reversed(self.shape), strict=False):
            if stored != meant:
                break
            count += 1
        return count


class _Sinker(BlockRewriter):
    def begin(self, bindings: list[relax.Binding]) -> None:
        self._reshaped: dict[relax.Var, _Reshaped] = {}
        self._made: dict[tuple[relax.Expr, tuple[int, ...]], relax.Expr] = {}

    def operand(self, variable: relax.Var) -> relax.Expr:
        held = self._reshaped.get(variable)
        return super().operand(variable) if held is None else self._as(held, held.shape)

    def held(self, expr: relax.Expr) -> _Reshaped:
        """How an operand of the original module is stored."""
        if isinstance(expr, relax.Var) and expr in self._reshaped:
            return self._reshaped[expr]
        new = self.substitute(expr)
        return _Reshaped(new, static_shape(new) or ())

    def _as(self, value: _Reshaped, shape: Sequence[int]) -> relax.Expr:
        """The tensor in another shape of as many elements; made once per tensor and shape."""
        shape = tuple(shape)
        if value.stored_shape == shape:
            return value.stored
        array = constant_array(value.stored)
        if array is not None:
            return constant(array.reshape(shape))
        key = (value.stored, shape)
        if key not in self._made:
            before = self.definition(value.stored)
            source = before.args[0] if operator_name(before) == "relax.reshape" else value.stored
            if static_shape(source) == shape:
                self._made[key] = source
            else:
                self._made[key] = self.emit(relax.op.reshape(source, shape))
        return self._made[key]

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        result = self._through(value)
        if result is None:
            return super().visit(variable, value)
        result = _Reshaped(self.emit(result.stored, variable.name), result.shape)
        if result.is_plain:
            return result.stored
        if not isinstance(variable, relax.DataflowVar):
            return self._as(result, result.shape)
        self._reshaped[variable] = result
        # Whoever reads the variable goes through `operand` or `held`, never through this.
        return variable

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        return value

    def _through(self, value: relax.Expr) -> _Reshaped | None:
        if isinstance(value, relax.Var) and value in self._reshaped:
            return self._reshaped[value]
        name = operator_name(value)
        shape = static_shape(value) if name is not None else None
        if shape is None or any(
            isinstance(argument.ty, relax.TensorType) and static_shape(argument) is None
            for argument in value.args
        ):
            return None
        if name == "relax.reshape":
            return _Reshaped(self.held(value.args[0]).stored, shape)
        if name == "relax.matmul":
            return self._matmul(value, shape)
        if not any(isinstance(a, relax.Var) and a in self._reshaped for a in value.args):
            return None
        if name in ELEMENTWISE:
            return self._applied(value, [self.held(value.args[0]).stored], shape)
        if name in BROADCASTING:
            return self._broadcasting(value, shape)
        rule = _RULES.get(str(name))
        return None if rule is None else rule(self, value, shape)

    @staticmethod
    def _applied(call: relax.Call, operands: list[relax.Expr], shape: tuple[int, ...]) -> _Reshaped:
        arguments = [*operands, *call.args[len(operands) :]]
        return _Reshaped(relax.Call(call.op, arguments, call.attrs, call.ty_args), shape)

    def _matmul(self, call: relax.Call, shape: tuple[int, ...]) -> _Reshaped | None:
        left, right = (self.held(argument) for argument in call.args)
        if len(left.shape) < 2 or len(right.shape) != 2 or 0 in left.shape:
            return None
        if len(left.shape) == 2 and len(left.stored_shape) == 2:
            return None
        inner = left.shape[-1]
        rows = element_count(left.shape[:-1])
        # Columns wide and rows few is how the matrix kernels like it; batches add nothing.
        matrix = self._as(left, (rows, inner))
        product = relax.op.matmul(matrix, self._as(right, right.shape), call.attrs.out_dtype)
        return _Reshaped(product, shape)

    def _broadcasting(self, call: relax.Call, shape: tuple[int, ...]) -> _Reshaped | None:
        operands = [self.held(argument) for argument in call.args]
        # The result takes the stored shape of an operand that is as large as the result.
        leaders = [o for o in operands if o.shape == shape and not o.is_plain]
        for leader in leaders:
            fitted = [self._fitted(operand, leader) for operand in operands]
            if all(operand is not None for operand in fitted):
                return self._applied(call, [o for o in fitted if o is not None], shape)
        return None

    def _fitted(self, operand: _Reshaped, leader: _Reshaped) -> relax.Expr | None:
        """`operand` in a shape that broadcasts to the leader's stored shape, if there is one."""
        if operand.shape == leader.shape:
            return self._as(operand, leader.stored_shape)
        if element_count(operand.shape) == 1:
            return self._as(operand, (1,) * min(len(operand.shape), len(leader.stored_shape)))
        trailing = leader.common_trailing
        rank = len(operand.shape)
        if any(extent != 1 for extent in operand.shape[: max(rank - trailing, 0)]):
            return None
        return self._as(operand, operand.shape[max(rank - trailing, 0) :])

    def _layer_norm(self, call: relax.Call, shape: tuple[int, ...]) -> _Reshaped | None:
        source = self.held(call.args[0])
        axes = integers(call.attrs.axes)
        count = len(axes)
        meant = [axis % len(shape) for axis in axes]
        if meant != list(range(len(shape) - count, len(shape))) or source.common_trailing < count:
            return None
        normalized = relax.op.nn.layer_norm(
            source.stored,
            *(self.substitute(argument) for argument in call.args[1:]),
            axes=[-position for position in range(count, 0, -1)],
            epsilon=float(call.attrs.epsilon),
            center=bool(call.attrs.center),
            scale=bool(call.attrs.scale),
        )
        return _Reshaped(normalized, shape)

    def _softmax(self, call: relax.Call, shape: tuple[int, ...]) -> _Reshaped | None:
        source = self.held(call.args[0])
        if int(call.attrs.axis) % len(shape) != len(shape) - 1 or source.common_trailing < 1:
            return None
        return _Reshaped(relax.op.nn.softmax(source.stored, -1), shape)


_RULES: dict[str, Callable[[_Sinker, relax.Call, tuple[int, ...]], _Reshaped | None]] = {
    "relax.nn.layer_norm": _Sinker._layer_norm,
    "relax.nn.softmax": _Sinker._softmax,
}
