"""Integers carried through what only moves or selects elements; idle conversions removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant_array, integers, operator_name, static_shape
from tinsmith.passes.quantize.operators import (
    Parameters,
    dequantize_call,
    moves_elements,
    parameters_of,
    quantize_call,
)
from tinsmith.targets.number_formats import NumberFormats


@tvm.transform.module_pass(opt_level=0, name="SimplifyQuantization")
class SimplifyQuantization:
    """Move `dequantize` towards the outputs until it meets a `quantize`, and cancel the two.

    Before::

        a: (1, 8, 8, 16) = max_pool2d(dequantize(q, s, z))
        b: uint8 = quantize(a, s, z)
        c: uint8 = quantize(relu(d), t, 0)
        e: uint8 = quantize(concat((dequantize(q, s, z), dequantize(r, t, 0))), t, 0)

    After::

        b: uint8 = max_pool2d(q)
        c: uint8 = quantize(d, t, 0)
        e: uint8 = concat((quantize(dequantize(q, s, z), t, 0), r))

    Operators that move or select elements compute on integers; padding with
    zero pads with the zero point. A `relu` or `clip` before a `quantize` is
    dropped if saturation to the integer range does the same. A concatenation
    runs on integers of its result's scale.

    Left alone: conversions with a scale per channel, and pairs of a `dequantize`
    and a `quantize` of different scale (they requantise).
    """

    requires = (PRODUCTS_OF_NUMBERS,)
    ensures = (PRODUCTS_OF_NUMBERS,)

    def __init__(self, table: NumberFormats) -> None:
        self.table = table

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Simplifier(module, self.table).run()


class _Simplifier(BlockRewriter):
    def __init__(self, module: tvm.IRModule, table: NumberFormats) -> None:
        super().__init__(module)
        self._table = table

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem):
            return self._split_item(value)
        name = operator_name(value)
        if name == "relax.quantize":
            return self._quantize(value)
        if name == "relax.nn.pad":
            return self._pad(value)
        if moves_elements(value, self._table) and name != "relax.split":
            return self._same_scale(value)
        return value

    def _dequantized(self, expr: relax.Expr) -> tuple[relax.Expr, Parameters] | None:
        """The integers and parameters if `expr` is `dequantize` with one scale, not of weights."""
        call = self.definition(expr)
        if operator_name(call) != "relax.dequantize" or not isinstance(call.args[0], relax.Var):
            return None
        parameters = parameters_of(call)
        if parameters is None or not parameters.per_tensor:
            return None
        return call.args[0], parameters

    def _same_scale(self, call: relax.Call) -> relax.Expr:
        source = self._dequantized(call.args[0])
        if source is None:
            return call
        stored, parameters = source
        moved = self.emit(relax.Call(call.op, [stored, *call.args[1:]], call.attrs, call.ty_args))
        return dequantize_call(moved, parameters)

    def _pad(self, call: relax.Call) -> relax.Expr:
        source = self._dequantized(call.args[0])
        constant_mode = str(call.attrs.pad_mode) == "constant"
        if source is None or (constant_mode and float(call.attrs.pad_value) != 0.0):
            return call
        stored, parameters = source
        padded = relax.op.nn.pad(
            stored,
            integers(call.attrs.pad_width),
            str(call.attrs.pad_mode),
            float(parameters.zero_point) if constant_mode else 0.0,
        )
        return dequantize_call(self.emit(padded), parameters)

    def _split_item(self, value: relax.TupleGetItem) -> relax.Expr:
        split = self.definition(value.tuple_value)
        if operator_name(split) != "relax.split":
            return value
        source = self._dequantized(split.args[0])
        if source is None:
            return value
        stored, parameters = source
        # Common subexpressions are found later: equal splits of the same integers are one.
        parts = self._splits.get(value.tuple_value)
        if parts is None:
            moved = relax.Call(split.op, [stored, *split.args[1:]], split.attrs, split.ty_args)
            parts = self._splits[value.tuple_value] = self.emit(moved)
        return dequantize_call(self.emit(relax.TupleGetItem(parts, value.index)), parameters)

    def begin(self, bindings: list[relax.Binding]) -> None:
        self._splits: dict[relax.Expr, relax.Expr] = {}

    def _quantize(self, call: relax.Call) -> relax.Expr:
        parameters = parameters_of(call)
        if parameters is None or not parameters.per_tensor:
            return call
        source = call.args[0]
        before = self._dequantized(source)
        if before is not None and before[1] == parameters:
            return before[0]
        producer = self.definition(source)
        if operator_name(producer) == "relax.concat":
            joined = self._concat(producer, parameters)
            return call if joined is None else joined
        if self.use_count(source) <= 1 and self._saturates_alike(producer, parameters):
            again = quantize_call(producer.args[0], parameters)
            return self._quantize(self._builder.normalize(again))
        return call

    def _concat(self, call: relax.Call, parameters: Parameters) -> relax.Expr | None:
        sources = [self._dequantized(field) for field in call.args[0].fields]
        if not isinstance(call.args[0], relax.Tuple) or None in sources:
            return None
        fields = [
            source[0] if source[1] == parameters else self.emit(quantize_call(field, parameters))
            for source, field in zip(sources, call.args[0].fields, strict=True)
            if source is not None
        ]
        axis = None if call.attrs.axis is None else int(call.attrs.axis)
        return relax.op.concat(fields, axis)

    @staticmethod
    def _saturates_alike(producer: Any, parameters: Parameters) -> bool:
        """Whether `quantize(producer)` is `quantize` of the producer's operand."""
        bounds = _bounds(producer)
        if bounds is None:
            return False
        limits = np.iinfo(parameters.dtype)
        inverse = np.float32(1) / np.float32(parameters.scale)

        def code(bound: float) -> float:
            return float(np.rint(np.float32(bound) * inverse)) + float(parameters.zero_point)

        return code(bounds[0]) <= limits.min and code(bounds[1]) >= limits.max


def _bounds(call: Any) -> tuple[float, float] | None:
    """The interval to which a call limits its operand at most; None for other calls."""
    name = operator_name(call)
    if name == "relax.nn.relu":
        return 0.0, np.inf
    if name == "relax.nn.relu6":
        return 0.0, 6.0
    if name == "relax.clip":
        low, high = (float(bound.value) for bound in call.args[1:3])
        return low, high
    if name in ("relax.maximum", "relax.minimum"):
        bound = constant_array(call.args[1])
        # A bound for each channel limits none of them more than the tightest one.
        if bound is not None and static_shape(call.args[0]) == static_shape(call):
            if name == "relax.maximum":
                return float(bound.max()), np.inf
            return -np.inf, float(bound.min())
    return None
