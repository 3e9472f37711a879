"""Follows channels through the graph: what each rule sees, and what it finds out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.fused_groups import unique_names
from tinsmith.passes.graph.rewriter import variables_in
from tinsmith.passes.graph.tensors import operator_name, shape_values, static_shape
from tinsmith.passes.prune.constants import constant_reads
from tinsmith.passes.prune.groups import Role
from tinsmith.passes.prune.labels import Labels, Traced, unlabelled

Rule = Callable[["Tracer", relax.Call], "Traced | tuple[Traced, ...] | None"]


@dataclass(frozen=True, eq=False)
class Use:
    """A constant that goes along with channels.

    The axes of `labels` align with the last axes of the constant (there may be more of them);
    what they say of an axis where the constant has extent 1 does not concern it.
    """

    constant: int
    labels: np.ndarray
    role: Role
    operator: str
    tensor: str
    data: str
    reads_zero: bool


class Tracer:
    """Traces the channels of every tensor of `main`, binding by binding.

    `traced` is what is known of each variable; `uses` are the constants that channels run
    through. A rule answers what is known of the result of a call, or None if it cannot tell:
    the channels that the call reads are frozen then.
    """

    def __init__(self, module: tvm.IRModule, rules: dict[str, Rule]) -> None:
        self.constants = {constant: i for i, constant in enumerate(constant_reads(module))}
        function = module["main"]
        self.labels = Labels()
        self.traced: dict[relax.Var, Traced | tuple[Traced, ...]] = {}
        self.names = unique_names(function)
        self.uses: list[Use] = []
        self._rules = rules
        self._variable: relax.Var | None = None
        for parameter in function.params:
            self.traced[parameter] = _untraced(parameter.ty)
        outputs = set(variables_in(function.body.body))
        for block in function.body.blocks:
            inside = isinstance(block, relax.DataflowBlock)
            for binding in block.bindings:
                self._visit(binding)
                if binding.var in outputs:
                    self.freeze(binding.var, "is a graph output")
                elif not isinstance(binding.var, relax.DataflowVar):
                    self.freeze(binding.var, "leaves a dataflow block")
                if not inside:
                    self.freeze(binding.value, "is read outside dataflow blocks")

    def of(self, expr: relax.Expr) -> Traced:
        """What is known of an operand; nothing for constants and parameters."""
        found = self.traced.get(expr) if isinstance(expr, relax.Var) else None
        return found if isinstance(found, Traced) else unlabelled(len(static_shape(expr) or ()))

    def use(
        self,
        call: relax.Call,
        constant: relax.Expr,
        labels: np.ndarray,
        role: Role,
        data: relax.Expr | None = None,
        reads_zero: bool = True,
    ) -> None:
        """Note that `labels` run through a constant operand of the call."""
        if not labels.any() or self._variable is None:
            return
        name = self.names.get(data, "") if isinstance(data, relax.Var) else ""
        self.uses.append(
            Use(
                self.constants[constant],
                labels,
                role,
                str(operator_name(call)),
                self.names[self._variable],
                name,
                reads_zero,
            )
        )

    def whole(self, traced: Traced, axes: Sequence[int], reason: str) -> Traced:
        """The tensor with labels along `axes` only: all positions along others go together."""
        others = tuple(axis for axis in traced.axes if axis not in axes)
        if not others:
            return traced
        first = traced.labels[
            tuple(
                slice(0, 1) if axis in others else slice(None) for axis in range(traced.labels.ndim)
            )
        ]
        if first.size == 1:
            self.labels.freeze(traced.labels, reason)
            return unlabelled(first.ndim)
        self.labels.unite(traced.labels, first, reason)
        return Traced(first, traced.zero)

    def agreed(
        self, operands: Sequence[tuple[Traced, Sequence[int]]], reason: str
    ) -> np.ndarray | None:
        """The labels of a result that needs all operands (of that shape) at each position.

        Shapes broadcast. Channels that meet something unlabelled are frozen; None if there
        are no labels at all.
        """
        rank = max(len(shape) for _, shape in operands)
        aligned = [
            (
                traced.labels.reshape((1,) * (rank - len(shape)) + traced.labels.shape),
                (1,) * (rank - len(shape)) + tuple(shape),
            )
            for traced, shape in operands
        ]
        result: np.ndarray | None = None
        for labels, _ in aligned:
            if not labels.any():
                continue
            if result is None:
                result = labels
                continue
            self.labels.unite(result, labels, reason)
            result = np.where(result, result, labels)
        if result is None:
            return None
        varying = [axis for axis, extent in enumerate(result.shape) if extent > 1]
        for labels, shape in aligned:
            if not labels.any() and any(shape[axis] > 1 for axis in varying):
                self.labels.freeze(result, reason)
        return result

    def freeze(self, expr: relax.Expr, reason: str) -> None:
        """The channels that an expression reads may not be removed."""
        for variable in variables_in(expr):
            found = self.traced.get(variable, ())
            for traced in found if isinstance(found, tuple) else (found,):
                self.labels.freeze(traced.labels, reason)

    def _visit(self, binding: relax.Binding) -> None:
        self._variable = binding.var
        value = binding.value
        found = self._trace(value) if isinstance(binding, relax.VarBinding) else None
        if found is None:
            operator = operator_name(value) or type(value).__name__
            known = operator in self._rules
            what = "needs all of it" if known else "is not understood"
            self.freeze(value, f"{operator} ({binding.var.name}) {what}")
            found = _untraced(binding.var.ty)
        if isinstance(found, tuple):
            self.traced[binding.var] = tuple(self._several(traced) for traced in found)
        else:
            self.traced[binding.var] = self._several(found)

    def _several(self, traced: Traced) -> Traced:
        """The tensor without a label if there is but one position to remove."""
        if traced.axes:
            return traced
        self.labels.freeze(traced.labels, "is picked alone")
        return unlabelled(traced.labels.ndim)

    def _trace(self, value: relax.Expr) -> Traced | tuple[Traced, ...] | None:
        if isinstance(value, relax.Var):
            return self.traced.get(value)
        if isinstance(value, GenericConst):
            return _untraced(value.ty)
        if isinstance(value, relax.TupleGetItem):
            items = self.traced.get(value.tuple_value)
            return items[value.index] if isinstance(items, tuple) else None
        if isinstance(value, relax.Tuple):
            return tuple(self.of(field) for field in value.fields)
        name = operator_name(value)
        rule = self._rules.get(name) if name is not None else None
        if rule is None or not _static(value):
            return None
        return rule(self, value)


def _untraced(ty: tvm.ir.Type) -> Traced | tuple[Traced, ...]:
    if isinstance(ty, relax.TupleType):
        return tuple(
            found if isinstance(found := _untraced(field), Traced) else unlabelled(0)
            for field in ty.fields
        )
    return unlabelled(max(ty.ndim, 0) if isinstance(ty, relax.TensorType) else 0)


def _static(call: relax.Call) -> bool:
    """Whether the shapes of all tensors that the call reads and gives are known."""
    pending = [call.ty, *(argument.ty for argument in call.args)]
    while pending:
        ty = pending.pop()
        if isinstance(ty, relax.TupleType):
            pending.extend(ty.fields)
        elif isinstance(ty, relax.TensorType) and (
            not isinstance(ty.shape, relax.ShapeExpr) or shape_values(ty.shape) is None
        ):
            return False
    return True
