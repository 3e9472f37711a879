"""Tables that 16 bits hold exactly, stored in 16 bits."""

from __future__ import annotations

import tvm
from tvm import relax

from passes.graph.rewriter import BlockRewriter
from passes.graph.tensors import constant_array, operator_name
from targets.half_weights import half_dtype, numpy_dtype


@tvm.transform.module_pass(opt_level=0, name="StoreHalves")
class StoreHalves:
    """Look up in a table of 16-bit floats and widen what is found.

    Before::

        y: (1, 9, 64) = take(const table: (5000, 64) float32, indices: (1, 9), axis=0)

    After, if float16 (or else bfloat16) holds every element of the table::

        t: (1, 9, 64) float16 = take(const table float16, indices, axis=0)
        y: (1, 9, 64) = astype(t, "float32")

    Left alone: small tables, and weights of convolutions and matrix products, which their
    kernels store in the same way.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _HalfStorer(module).run()


class _HalfStorer(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) != "relax.take":
            return value
        table = constant_array(value.args[0])
        dtype = None if table is None else half_dtype(table)
        if table is None or dtype is None:
            return value
        stored = relax.const(table.astype(numpy_dtype(dtype)), dtype)
        found = relax.Call(value.op, [stored, *value.args[1:]], value.attrs, value.ty_args)
        return relax.op.astype(self.emit(found), "float32")
