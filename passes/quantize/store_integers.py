"""Kernels that end where integers or short floats are to be stored."""

from __future__ import annotations

import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import element_type, operator_name, static_shape
from tinsmith.passes.quantize.fusion_preview import kept_in_memory

_WIDENING = frozenset({"relax.astype", "relax.dequantize"})


@tvm.transform.module_pass(opt_level=0, name="StoreIntegers")
class StoreIntegers:
    """Keep fusion from drawing a `dequantize` or cast into the kernel that narrowed.

    Before::

        q: (1, 8, 8, 16) uint8 = quantize(a, s, z)
        d: (1, 8, 8, 16) = dequantize(q, s, z)
        y: (1, 16) = mean(d, axis=[1, 2])

    After::

        q: (1, 8, 8, 16) uint8 = quantize(a, s, z)
        b: (1, 8, 8, 16) uint8 = reshape(q, (1, 8, 8, 16))
        d: (1, 8, 8, 16) = dequantize(b, s, z)
        y: (1, 16) = mean(d, axis=[1, 2])

    Without it the kernel that computes `a` would store floats, four times as many
    bytes. The reshape that changes nothing is a border for fusion, which removes it.

    Likewise for `b: bfloat16 = astype(a)`, widened behind.

    Left alone: a `dequantize` after which the same kernel goes on, as in
    `conv2d, quantize, dequantize, add`.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Storer(module).run()


class _Storer(BlockRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._in_memory = {node.variable for node in kept_in_memory(Dataflow(module))}

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) not in _WIDENING or variable not in self._in_memory:
            return value
        stored = value.args[0]
        shape = static_shape(stored)
        if shape is None or not _is_narrowing(self.definition(stored)):
            return value
        border = self.emit(relax.op.reshape(stored, shape))
        return relax.Call(value.op, [border, *value.args[1:]], value.attrs, value.ty_args)


def _is_narrowing(value: relax.Expr | None) -> bool:
    """Whether the value of a binding is quantised or rounded to a shorter float."""
    name = operator_name(value)
    if value is None or name != "relax.astype":
        return name == "relax.quantize"
    return element_type(value) in ("bfloat16", "float16")
