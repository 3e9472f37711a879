"""Activations of quantised models with the sign that the target's kernels take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import operator_name
from tinsmith.passes.quantize.operators import (
    dequantize_call,
    moves_elements,
    parameters_of,
    quantize_call,
)
from tinsmith.targets.number_formats import NumberFormats

_CONVERSIONS = ("relax.quantize", "relax.dequantize")
_SHIFT = {("int8", "uint8"): 128, ("uint8", "int8"): -128}


@tvm.transform.module_pass(opt_level=0, name="MatchSignedness")
class MatchSignedness:
    """Store activations unsigned for x86, signed for ARM; the values stay the same.

    Before, for a target that stores uint8::

        q: int8 = quantize(x, s, z)
        d = dequantize(q, s, z)

    After::

        q: uint8 = quantize(x, s, z + 128)
        d = dequantize(q, s, z + 128)

    Left alone: integers that something else than `dequantize` reads, scales per
    channel, constants, and the right operand of a product of two computed ones if it
    has the dtype of weights.
    """

    requires = (PRODUCTS_OF_NUMBERS,)

    def __init__(self, table: NumberFormats) -> None:
        self.table = table

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Matcher(module, self.table).run()


class _Matcher(BlockRewriter):
    def __init__(self, module: tvm.IRModule, table: NumberFormats) -> None:
        super().__init__(module)
        self._shifted: set[relax.Var] = set()
        self._wanted = wanted = table.activation
        graph = Dataflow(module)
        right = _right_operands(graph, table)
        for node in graph.nodes:
            meaning = parameters_of(node.value) if node.operator == "relax.quantize" else None
            if (
                meaning is not None
                and meaning.per_tensor
                and (meaning.dtype, wanted) in _SHIFT
                and not node.escapes
                and node not in right
                and all(reader.operator == "relax.dequantize" for reader in node.readers)
                and all(
                    getattr(parameters_of(reader.value), "per_tensor", False)
                    for reader in node.readers
                )
            ):
                self._shifted.add(node.variable)
                self._shifted.update(reader.variable for reader in node.readers)

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        meaning = parameters_of(value) if variable in self._shifted else None
        if meaning is None:
            return value
        if operator_name(value) == "relax.quantize":
            shift = _SHIFT[meaning.dtype, self._wanted]
            moved = replace(meaning, zero_point=meaning.zero_point + shift, dtype=self._wanted)
            return quantize_call(value.args[0], moved)
        # The operand has the new dtype by now, its zero point is still the old one.
        before = "int8" if self._wanted == "uint8" else "uint8"
        shift = _SHIFT[before, self._wanted]
        moved = replace(meaning, zero_point=meaning.zero_point + shift, dtype=self._wanted)
        return dequantize_call(value.args[0], moved)


def _right_operands(graph: Dataflow, table: NumberFormats) -> set[Node]:
    """Each `quantize` to the dtype of weights behind a computed right operand."""
    found: set[Node] = set()
    for product in graph.nodes:
        form = table.integer_operators.get(str(product.operator))
        call: Any = product.value
        node = None if form is None else graph.node(call.args[1])
        if form is None or node is None:
            continue
        while node.operands and (
            node.operator in _CONVERSIONS or moves_elements(node.value, table)
        ):
            meaning = parameters_of(node.value) if node.operator == "relax.quantize" else None
            if meaning is not None and meaning.dtype == form.weight:
                found.add(node)
            node = node.operands[0]
    return found
