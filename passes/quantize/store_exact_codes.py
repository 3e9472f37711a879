"""Constant float weights stored in the few bits that the model file had for them."""

from __future__ import annotations

from collections.abc import Callable
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
from tinsmith.passes.quantize.compress_weights import is_compressible
from tinsmith.passes.quantize.exact_codes import exact_codes
from tinsmith.targets.compressed_weights import CompressedWeights, decompress_call
from tinsmith.targets.half_weights import half_dtype, numpy_dtype

# Smaller weights are left alone: there is little to be saved.
_FEWEST = 4096

# What is told: how many weights, the bytes they would take as floats, and those they take.
Report = Callable[[int, int, int], None]


@tvm.transform.module_pass(opt_level=0, name="StoreExactCodes")
class StoreExactCodes:
    """Replace weights that lie on a grid by codes and scales that give the very same numbers.

    Before::

        y: (1, 1024) = matmul(x: (1, 2048), const w: (2048, 1024) float32)
        e: (7, 64) = take(const table: (30000, 64) float32, i: (7,), axis=0)

    After::

        d: (2048, 1024) float32 = tinsmith.decompress(const codes: (2048, 1024) int8,
                                                      const scales: (1, 1024) float32)
        y: (1, 1024) = matmul(x, d)
        c: (7, 64) = astype(take(const codes: (30000, 64) int8, i, axis=0), "float32")
        e: (7, 64) = multiply(c, const scales: (1, 64))

    Kernels of products decompress; entries of a table are, once gathered. A table whose scales
    differ by entry has them gathered, too. `report` is called at the end if there were any.

    Left alone: depthwise convolutions, weights that are no constants, and those that no codes of
    8 bits give exactly.
    """

    def __init__(self, report: Report | None = None) -> None:
        self.report = report

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        rewriter = _Storer(module)
        result = rewriter.run()
        if rewriter.count and self.report is not None:
            self.report(rewriter.count, rewriter.float_bytes, rewriter.stored_bytes)
        return result


class _Storer(BlockRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.count = self.float_bytes = self.stored_bytes = 0

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        call: Any = value
        if operator_name(value) in ("relax.nn.conv2d", "relax.matmul"):
            weights = _floats(call.args[1])
            if weights is None or not is_compressible(call, weights):
                return value
            found = exact_codes(weights)
            if found is None:
                return value
            self._note(weights, found)
            return relax.Call(
                call.op,
                [call.args[0], self.emit(decompress_call(found))],
                call.attrs,
                call.ty_args,
            )
        return self._gathered(call) if operator_name(value) == "relax.take" else value

    def _gathered(self, call: Any) -> relax.Expr:
        """Entries of a table of codes, times the scales of the columns or of the entries."""
        table = _floats(call.args[0])
        axis = call.attrs.axis
        if table is None or table.ndim != 2 or axis is None or int(axis) != 0:
            return call
        if static_shape(call) is None:
            return call
        found = exact_codes(table)
        by_entry = found is None or found.bits != 8 or found.grouping.count != 1
        if by_entry:
            found = exact_codes(np.ascontiguousarray(table.T))
        if found is None or found.bits != 8 or found.grouping.count != 1:
            return self._halves(call, table)
        codes = np.ascontiguousarray(found.codes.T) if by_entry else found.codes
        self._note(table, found)
        entries = self.emit(relax.op.astype(self._taken(call, codes), "float32"))
        if found.offsets is not None:
            entries = self.emit(
                relax.op.subtract(entries, self._factors(call, found.offsets, by_entry))
            )
        scales = found.scales.astype(np.float32)
        return relax.op.multiply(entries, self._factors(call, scales, by_entry))

    def _halves(self, call: Any, table: np.ndarray) -> relax.Expr:
        """Entries of a table of float16 or bfloat16, if that holds all of it."""
        dtype = half_dtype(table)
        if dtype is None:
            return call
        half = table.astype(numpy_dtype(dtype))
        self.count += 1
        self.float_bytes += table.nbytes
        self.stored_bytes += half.nbytes
        return relax.op.astype(self._taken(call, half), "float32")

    def _factors(self, call: Any, factors: np.ndarray, by_entry: bool) -> relax.Expr:
        """`[1, N]` factors for what was gathered: of the columns, or gathered in turn."""
        if not by_entry:
            return constant(factors.reshape(-1))
        return self._taken(call, np.ascontiguousarray(factors.reshape(-1, 1)))

    def _taken(self, call: Any, table: np.ndarray) -> relax.Expr:
        arguments = [relax.const(table, str(table.dtype)), *call.args[1:]]
        return self.emit(relax.Call(call.op, arguments, call.attrs, call.ty_args))

    def _note(self, weights: np.ndarray, stored: CompressedWeights) -> None:
        self.count += 1
        self.float_bytes += weights.nbytes
        self.stored_bytes += stored.stored_bytes


def _floats(expr: relax.Expr) -> np.ndarray | None:
    """A constant of float32 with enough elements to matter."""
    if element_type(expr) != "float32":
        return None
    array = constant_array(expr)
    return array if array is not None and array.size >= _FEWEST else None
