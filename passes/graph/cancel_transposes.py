"""Transposes pushed towards the outputs until they meet their inverse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.permutation import Permuted, plain, same_storage
from tinsmith.passes.graph.permutation_rules import PERMUTATION_RULES
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    inverse_permutation,
    moves_only_unit_axes,
    operator_name,
    static_shape,
)


@tvm.transform.module_pass(opt_level=0, name="CancelTransposes")
class CancelTransposes:
    """Compute in the order in which tensors are stored, and transpose only where it must be.

    Before::

        a: (1, 16, 8, 8) = permute_dims(x: (1, 8, 8, 16), axes=[0, 3, 1, 2])
        b: (1, 16, 8, 8) = add(a, const (1, 16, 1, 1))
        c: (1, 32, 8, 8) = concat((b, b), axis=1)
        y: (1, 8, 8, 32) = permute_dims(c, axes=[0, 2, 3, 1])

    After::

        b: (1, 8, 8, 16) = add(x, const (1, 1, 1, 16))
        y: (1, 8, 8, 32) = concat((b, b), axis=3)

    A `permute_dims` is not executed but remembered. Operators in
    `tinsmith.passes.graph.permutation_rules` (elementwise ones with broadcasting,
    concatenation, reductions, softmax, padding, slicing, splitting, reshapes
    that keep elements in place, ...) are then applied to the tensor as it is
    stored, with their axes renumbered and their constants permuted. Where
    operands are stored differently, the cheaper ones are transposed. All other
    operators, and the outputs, get the tensor as it was meant: by a
    `permute_dims`, made once for all its readers, or by a `reshape` when only
    axes of extent 1 move.

    Left alone: tensors with symbolic shapes, and calls of kernels.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return PermutationRewriter(module).run()


class PermutationRewriter(BlockRewriter):
    """The state of `CancelTransposes`: which variable is stored how."""

    def begin(self, bindings: list[relax.Binding]) -> None:
        self._permuted: dict[relax.Var, Permuted | tuple[Permuted, ...]] = {}
        self._made: dict[tuple[relax.Expr, tuple[int, ...]], relax.Expr] = {}

    def operand(self, variable: relax.Var) -> relax.Expr:
        """The tensor as it is meant, for operators that know nothing of permutations."""
        held = self._permuted.get(variable)
        if held is None:
            return super().operand(variable)
        if isinstance(held, tuple):
            return relax.Tuple([self.as_meant(item) for item in held])
        return self.as_meant(held)

    def held(self, expr: relax.Expr) -> Permuted:
        """How an operand of the original module is stored."""
        if isinstance(expr, relax.Var):
            found = self._permuted.get(expr)
            if isinstance(found, Permuted):
                return found
        return plain(self.substitute(expr))

    def is_permuted(self, expr: relax.Expr) -> bool:
        """Whether an operand of the original module is stored otherwise than it is meant."""
        if isinstance(expr, relax.Tuple):
            return any(self.is_permuted(field) for field in expr.fields)
        return isinstance(expr, relax.Var) and expr in self._permuted

    def as_meant(self, value: Permuted) -> relax.Expr:
        """The tensor in its meant order."""
        return self.permute(value.stored, value.axes)

    def stored_like(self, value: Permuted, axes: tuple[int, ...]) -> relax.Expr:
        """The tensor stored so that `axes` is its order: `permute_dims(result, axes)` is it."""
        if value.axes == axes:
            return value.stored
        needed = tuple(value.axes[meant] for meant in inverse_permutation(axes))
        return self.permute(value.stored, needed)

    def permute(self, expr: relax.Expr, axes: Sequence[int]) -> relax.Expr:
        """`permute_dims(expr, axes)` in its cheapest form; made once per tensor and order."""
        axes = tuple(axes)
        if axes == tuple(range(len(axes))):
            return expr
        array = constant_array(expr)
        if array is not None:
            return constant(np.ascontiguousarray(array.transpose(axes)))
        key = (expr, axes)
        if key not in self._made:
            shape = static_shape(expr) or ()
            if moves_only_unit_axes(shape, axes):
                made = self.reshaped(expr, [shape[axis] for axis in axes])
            else:
                made = self.emit(relax.op.permute_dims(expr, axes))
            self._made[key] = made
        return self._made[key]

    def reshaped(self, expr: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        """`reshape(expr, shape)`, joined with a reshape before it."""
        if static_shape(expr) == tuple(shape):
            return expr
        array = constant_array(expr)
        if array is not None:
            return constant(array.reshape(tuple(shape)))
        before = self.definition(expr)
        if operator_name(before) == "relax.reshape":
            return self.reshaped(before.args[0], shape)
        return self.emit(relax.op.reshape(expr, tuple(shape)))

    def permutes_for_free(self, value: Permuted, axes: tuple[int, ...]) -> bool:
        """Whether `stored_like` moves no element at run time."""
        if constant_array(value.stored) is not None:
            return True
        return same_storage(value.meant_shape, value.axes, axes)

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        result = self._through(value)
        if result is None:
            return super().visit(variable, value)
        if isinstance(result, Permuted):
            result = Permuted(self.emit(result.stored, variable.name), result.axes)
            if result.is_identity:
                return result.stored
            if not isinstance(variable, relax.DataflowVar):
                return self.as_meant(result)
        elif not isinstance(variable, relax.DataflowVar):
            return self.emit(relax.Tuple([self.as_meant(item) for item in result]))
        self._permuted[variable] = result
        # Whoever reads the variable goes through `operand` or `held`, never through this.
        return variable

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        return value

    def _through(self, value: relax.Expr) -> Permuted | tuple[Permuted, ...] | None:
        """The result in stored order; None to compute it as the module means it."""
        if isinstance(value, relax.Var) and value in self._permuted:
            return self._permuted[value]
        if isinstance(value, relax.TupleGetItem) and isinstance(value.tuple_value, relax.Var):
            items = self._permuted.get(value.tuple_value)
            return items[value.index] if isinstance(items, tuple) else None
        name = operator_name(value)
        if name is None:
            return None
        if name != "relax.permute_dims" and not any(map(self.is_permuted, value.args)):
            return None
        rule = PERMUTATION_RULES.get(name)
        return None if rule is None else rule(self, value)
