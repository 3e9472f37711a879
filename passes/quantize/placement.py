"""Which tensors are stored as integers, and which operators stay float and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import (
    constant_array,
    element_count,
    element_type,
    static_shape,
)
from tinsmith.passes.quantize.fusion_preview import is_elementwise, kept_in_memory
from tinsmith.passes.quantize.numbers import NARROW_INT8, UINT8, largest_accumulation
from tinsmith.passes.quantize.operators import moves_elements
from tinsmith.targets.number_formats import IntegerFormat, NumberFormats

# Codes of either sign may be stored: the larger products count.
_SAFE_TERMS = largest_accumulation(UINT8, NARROW_INT8)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor kept in integers. `source` names the tensor whose scale it has; its own or another.

    Only tensors that are their own source need a range. `symmetric`: signed and without a
    zero point, as the right operand of a product of two computed ones has to be.
    """

    name: str
    source: str
    symmetric: bool = False


@dataclass(frozen=True)
class FloatOperator:
    """An operator that computes in float although its neighbours use integers, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """What is integer in a graph: by names of tensors; an operator has its result's name."""

    stored: dict[str, StoredTensor]
    integer_operators: tuple[str, ...]
    float_operators: tuple[FloatOperator, ...]

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose range has to be known, in the order of the graph."""
        return tuple(name for name, tensor in self.stored.items() if tensor.source == name)


def observed_tensors(
    module: tvm.IRModule, table: NumberFormats, keep_float: Collection[str] = ()
) -> tuple[str, ...]:
    """Names of the tensors of `main` that calibration has to observe, in order."""
    return place(module, table, keep_float).observed


def place(
    module: tvm.IRModule, table: NumberFormats, keep_float: Collection[str] = ()
) -> Placement:
    """Decide what of `main` is stored and computed in integers.

    `module` is a float graph after the graph passes: convolutions in NHWC (the
    first may read NCHW) with constant weights in HWIO. `keep_float` names the
    results of operators that must compute in float.

    A tensor is stored in integers if it is kept in memory at all, and an integer
    operator reads it, directly or through operators that compute in registers.
    Whether it is kept in memory follows fusion: results inside an elementwise
    chain, behind a convolution or not, exist in registers only, and are never
    rounded. Of two convolutions that are added, the later one is stored.

    Tensors that share a scale: the result of an operator that only moves or
    selects elements has that of its operand; what is read by one concatenation
    alone has that of the concatenation. Tensors that only float operators read
    stay float, as do the results of the function.
    """
    return _Placer(Dataflow(module), table, frozenset(keep_float)).placement()


class _Placer:
    def __init__(self, graph: Dataflow, table: NumberFormats, keep_float: frozenset[str]) -> None:
        self._graph = graph
        self._table = table
        self._keep_float = keep_float
        self._float: dict[Node, str] = {}
        self._integer: list[Node] = []
        self._right: set[Node] = set()

    def placement(self) -> Placement:
        self._choose_operators()
        in_memory = kept_in_memory(self._graph)
        wanted = self._wanted_as_integers()
        stored = [
            node
            for node in self._graph.nodes
            if node in in_memory and node in wanted and element_type(node.variable) == "float32"
        ]
        self._report_others(set(stored))
        return Placement(
            stored={
                n.name: StoredTensor(n.name, source.name, source in self._right)
                for n in stored
                for source in [self._scale_of(n, set(stored))]
            },
            integer_operators=tuple(node.name for node in self._integer),
            float_operators=tuple(
                FloatOperator(node.name, str(node.operator).removeprefix("relax."), reason)
                for node, reason in sorted(self._float.items(), key=lambda item: item[0].index)
            ),
        )

    def _choose_operators(self) -> None:
        """Sort the operators that have an integer kernel into integer and float ones.

        Which tensors are right operands of products is decided as if no operator were kept in
        float on request: keeping some must not turn others into integers.
        """
        left: set[Node] = set()
        products = []
        for node in self._graph.nodes:
            if node.operator not in self._table.integer_operators:
                continue
            reason = self._why_float(node)
            call: Any = node.value
            data, right = (self._graph.node(operand) for operand in call.args[:2])
            if reason is not None or data is None:
                self._float[node] = reason or "its left operand is constant"
            elif right is not None:
                products.append((node, self._origin(data), self._origin(right)))
            else:
                left.add(self._origin(data))
                self._integer.append(node)
        for node, first, second in products:
            if second in left or first in self._right or first is second:
                self._float[node] = "its right operand is read as a left one, too"
                continue
            left.add(first)
            self._right.add(second)
            self._integer.append(node)
        for node in self._integer:
            if node.name in self._keep_float:
                self._float[node] = "kept in float on request"
        self._integer = sorted(
            (node for node in self._integer if node not in self._float), key=lambda n: n.index
        )

    def _origin(self, node: Node) -> Node:
        """The tensor whose elements `node` has, perhaps in another order."""
        while moves_elements(node.value, self._table) or self._is_split_item(node):
            node = node.operands[0]
        return node

    def _why_float(self, node: Node) -> str | None:
        """None if the table's integer kernel can compute the call."""
        call: Any = node.value
        form = self._table.integer_operators[str(node.operator)]
        if form is None:
            return f"integers are no gain on {self._table.family}"
        data, right = call.args[0], call.args[1]
        shape, weights = static_shape(data), constant_array(right)
        if shape is None or element_type(data) != "float32":
            return f"its operand is {element_type(data)} or has no static shape"
        if weights is None and node.operator == "relax.matmul":
            return self._why_float_product(call, form)
        if weights is None:
            return "its weights are not constant"
        if node.operator == "relax.nn.conv2d":
            if weights.ndim != 4 or str(call.attrs.kernel_layout) != "HWIO":
                return f"its weights are in {call.attrs.kernel_layout}"
            terms = int(np.prod(weights.shape[:3]))
        else:
            if weights.ndim != 2 or len(shape) < 2:
                return "its right operand is no matrix"
            terms = weights.shape[0]
        if not np.isfinite(weights).all():
            return "its weights are not finite"
        if terms > _SAFE_TERMS:
            return f"a sum of {terms} products does not fit int32"
        return None

    def _why_float_product(self, call: Any, form: IntegerFormat) -> str | None:
        """None if integers pay for a product of two computed operands."""
        left, right = (static_shape(operand) for operand in call.args)
        if left is None or right is None or element_type(call.args[1]) != "float32":
            return f"its right operand is {element_type(call.args[1])} or has no static shape"
        if len(left) < 2 or len(right) < 2:
            return "its right operand is no matrix"
        if left[-1] > _SAFE_TERMS:
            return f"a sum of {left[-1]} products does not fit int32"
        if left[-2] < form.least_rows and not self._is_transposed(self._graph.node(call.args[1])):
            return f"integers are no gain for {left[-2]} rows: its right operand has to be packed"
        return None

    def _is_transposed(self, node: Node | None) -> bool:
        """Whether a kernel that moves the elements of `node` anyway is there to pack them."""
        while node is not None and node.operator == "relax.reshape":
            node = node.operands[0] if node.operands else None
        return node is not None and node.operator == "relax.permute_dims"

    def _wanted_as_integers(self) -> set[Node]:
        """The tensors of which an integer operator reads something, through registers or not."""
        integer = set(self._integer)
        wanted: set[Node] = set()
        for node in reversed(self._graph.nodes):
            if element_type(node.variable) != "float32" and node.operator != "relax.split":
                continue
            for reader in node.readers:
                passes = is_elementwise(reader) or (
                    reader.operator in self._table.in_registers
                    or moves_elements(reader.value, self._table)
                    or self._is_split_item(reader)
                )
                if reader in integer or (passes and reader in wanted):
                    wanted.add(node)
        return wanted

    def _is_split_item(self, node: Node) -> bool:
        return (
            node.operator is None
            and len(node.operands) == 1
            and node.operands[0].operator == "relax.split"
        )

    def _scale_of(self, node: Node, stored: set[Node]) -> Node:
        """The stored tensor whose scale and zero point are those of `node`."""
        if moves_elements(node.value, self._table) or self._is_split_item(node):
            source = node.operands[0]
            if source.operator == "relax.split":
                source = source.operands[0]
            return self._scale_of(source, stored) if source in stored else node
        if len(node.readers) == 1 and node.readers[0].operator == "relax.concat":
            reader = node.readers[0]
            if reader in stored and not node.escapes:
                return self._scale_of(reader, stored)
        return node

    def _report_others(self, stored: set[Node]) -> None:
        """Note the operators between integers that have no integer form."""
        for node in self._graph.nodes:
            if node.operator is None or node in self._float or node in self._integer:
                continue
            known = (
                is_elementwise(node)
                or node.operator in self._table.in_registers
                or moves_elements(node.value, self._table)
            )
            tensors = [*node.operands, node]
            if not known and element_count(static_shape(node.variable) or ()) > 1:
                if any(tensor in stored for tensor in tensors):
                    self._float[node] = "no integer kernel; reads or writes dequantised values"
                else:
                    self._float[node] = "no integer kernel"
