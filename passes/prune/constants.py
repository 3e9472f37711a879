"""The constants of a module: numbered, and replaced by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant


def constant_reads(module: tvm.IRModule) -> Counter[GenericConst]:
    """Every constant of `main` in the order in which it is first read, and how often it is.

    Raises ValueError if the module has no Relax function `main`.
    """
    functions = {name.name_hint: function for name, function in module.functions_items()}
    function = functions.get("main")
    if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
        raise ValueError("the module has no Relax function `main` with a body of bindings")
    reads: Counter[GenericConst] = Counter()

    def visit(value: relax.Expr) -> None:
        if isinstance(value, GenericConst):
            reads[value] += 1
        elif isinstance(value, relax.Call):
            for argument in value.args:
                visit(argument)
        elif isinstance(value, relax.Tuple):
            for field in value.fields:
                visit(field)

    for block in function.body.blocks:
        for binding in block.bindings:
            visit(binding.value)
    return reads


def replace_constants(module: tvm.IRModule, values: Mapping[int, np.ndarray]) -> tvm.IRModule:
    """The module with other values for the constants at these positions of `Groups.constants`.

    Shapes and dtypes stay; ValueError otherwise.
    """
    constants = list(constant_reads(module))
    for index, array in values.items():
        before = constants[index].value
        if tuple(before.shape) != array.shape or str(before.dtype) != str(array.dtype):
            raise ValueError(
                f"constant {index} is {before.dtype}{list(before.shape)},"
                f" not {array.dtype}{list(array.shape)}"
            )
    return ConstantReplacer(module, {constants[i]: array for i, array in values.items()}).run()


class ConstantReplacer(BlockRewriter):
    """Reads other arrays in place of constants."""

    def __init__(self, module: tvm.IRModule, values: Mapping[GenericConst, np.ndarray]) -> None:
        super().__init__(module)
        self._new = {old: constant(array) for old, array in values.items()}

    def substitute(self, value: relax.Expr) -> relax.Expr:
        if isinstance(value, GenericConst):
            return self._new.get(value, value)
        return super().substitute(value)

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        return value
