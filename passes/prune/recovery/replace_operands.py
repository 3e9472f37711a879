"""New values for constants that certain operators read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array


@tvm.transform.module_pass(opt_level=0, name="ReplaceOperands")
class ReplaceOperands:
    """Give operators other constants, of the same shapes and dtypes.

    Before::

        y = conv2d(x, const w)

    After, with values {("y", 1): v}::

        y = conv2d(x, const v)

    `values` maps the name of an operator's result (by `Dataflow`) and the position of the
    operand to the new array. Other readers of the same constant keep the old one. Raises
    ValueError for a name that no tensor has, an operand that is no constant, or an
    array that does not fit.
    """

    def __init__(self, values: Mapping[tuple[str, int], np.ndarray]) -> None:
        self.values = dict(values)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return replace_operands(module, self.values)


def replace_operands(
    module: tvm.IRModule, values: Mapping[tuple[str, int], np.ndarray]
) -> tvm.IRModule:
    """`ReplaceOperands(values)` of a module."""
    graph = Dataflow(module)
    chosen: dict[relax.Var, dict[int, np.ndarray]] = {}
    for (name, position), array in values.items():
        node = graph.named(name)
        call: Any = None if node is None else node.value
        if node is None or not isinstance(call, relax.Call):
            raise ValueError(f"no operator computes a tensor {name}")
        old = constant_array(call.args[position])
        if old is None or old.shape != array.shape or old.dtype != array.dtype:
            kind = "is no constant" if old is None else f"is {old.dtype} {old.shape}"
            raise ValueError(
                f"operand {position} of {name} {kind}, not {array.dtype} {array.shape}"
            )
        chosen.setdefault(node.variable, {})[position] = array
    return _Replacer(module, chosen).run()


class _Replacer(BlockRewriter):
    def __init__(
        self, module: tvm.IRModule, chosen: Mapping[relax.Var, Mapping[int, np.ndarray]]
    ) -> None:
        super().__init__(module)
        self._chosen = chosen

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        found = self._chosen.get(variable)
        if found is None:
            return value
        call: Any = value
        arguments = [
            constant(found[i]) if i in found else argument for i, argument in enumerate(call.args)
        ]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)
