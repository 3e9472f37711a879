"""`x[:, start:end] = value` as exporters write it: indices made at run time become a selection.

    Slice(x, start, end) -> Shape -> Expand(value, .)     -> updates  \\
    Range(start, end, 1) -> Reshape([1, -1, 1]) -> Tile   -> indices  -> ScatterElements(x, axis 1)

becomes Where(start <= position < end, value, x). The length of the range depends on data, and with
it the shape of all between; that of the result does not. In bodies of loops it keeps the states,
and all that follows, in kernels.

Left alone are steps other than 1, several axes at a time, values that differ along the axis,
tensors of unknown shape, and scatters that add or compare.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, NodeProto
from tvm import relax, tirx

from tinsmith.compiler.frontends.onnx.dynamic import free_names

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.onnx.importer import GraphImporter

# What such an assignment consists of besides the scatter itself.
_PARTS = frozenset({"Concat", "Expand", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Tile"})

# Of those whose inputs are looked at; a file may have left some out.
_FEWEST_INPUTS = {"Range": 3, "Shape": 1, "Slice": 4, "Squeeze": 1}


@dataclass(frozen=True)
class _Assignment:
    """Names of the tensors, and the axis with its extent."""

    data: str
    value: str
    start: str
    end: str
    axis: int
    shape: tuple[int, ...]


class SliceAssignments:
    """Those of `graph`, whose nodes `importer` adds one after the other.

    What only an assignment reads waits until its ScatterElements is there.
    """

    def __init__(self, importer: GraphImporter, graph: GraphProto) -> None:
        self._importer = importer
        self._made_by = {name: node for node in graph.node for name in node.output if name}
        self._waiting: dict[str, NodeProto] = {}
        if not any(node.op_type == "ScatterElements" for node in graph.node):
            return
        readers: dict[str, list[str]] = defaultdict(list)
        for value in graph.output:
            readers[value.name].append("")
        for node in reversed(graph.node):
            read = [reader for name in node.output for reader in readers[name]]
            waits = node.op_type in _PARTS and bool(read) and all(read)
            if waits:
                self._waiting.update((name, node) for name in node.output)
            # An empty name stands for a reader that does not wait.
            role = "waits" if waits or node.op_type == "ScatterElements" else ""
            names = {name for name in node.input if name}
            for attribute in node.attribute:
                for subgraph in (attribute.g, *attribute.graphs):
                    names |= free_names(subgraph)
            for name in names:
                readers[name].append(role)

    def take(self, node: NodeProto) -> bool:
        """Whether `node` needs not be added: it waits, or has been replaced."""
        if node.output and node.output[0] in self._waiting:
            return True
        if node.op_type != "ScatterElements" or node.domain:
            return False
        found = self._found(node)
        if found is not None:
            self._select(node, found)
            return True
        for name in node.input:
            self._add(name)
        return False

    def _add(self, name: str) -> None:
        """Add the node that makes the value `name`, if it waits, and those before it."""
        node = self._waiting.get(name)
        if node is None:
            return
        for output in node.output:
            self._waiting.pop(output, None)
        for needed in node.input:
            self._add(needed)
        self._importer.add_node(node)

    def _found(self, scatter: NodeProto) -> _Assignment | None:
        attributes = {a.name: a for a in scatter.attribute}
        if "reduction" in attributes and attributes["reduction"].s != b"none":
            return None
        if len(scatter.input) != 3:
            return None
        data, indices, updates = scatter.input
        tile, expand = self._maker(indices, "Tile", "Expand"), self._maker(updates, "Expand")
        reshape = self._maker(tile.input[0], "Reshape") if tile else None
        positions = self._maker(reshape.input[0], "Range") if reshape else None
        size = self._maker(expand.input[1], "Shape") if expand else None
        piece = self._maker(size.input[0], "Slice") if size and not size.attribute else None
        if not (expand and reshape and positions and piece) or piece.input[0] != data:
            return None
        begin, end = (self._maker(name, "Squeeze") for name in positions.input[:2])
        if begin is None or end is None or [begin.input[0], end.input[0]] != [*piece.input[1:3]]:
            return None
        shape = self._shape(data)
        axis = attributes["axis"].i if "axis" in attributes else 0
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        line = [-1 if a == axis else 1 for a in range(len(shape))]
        steps = [positions.input[2], *piece.input[4:]]
        if not self._is(reshape.input[1], line) or not all(self._is(s, [1]) for s in steps):
            return None
        if not (self._is(piece.input[3], [axis]) or self._is(piece.input[3], [axis - len(shape)])):
            return None
        value = expand.input[0]
        self._add(value)
        given = self._shape(value)
        if given is None or len(given) > len(shape):
            return None
        room = [1 if a == axis else extent for a, extent in enumerate(shape)]
        fits = zip(given, room[len(shape) - len(given) :], strict=True)
        if not all(extent in (1, wanted) for extent, wanted in fits):
            return None
        return _Assignment(data, value, piece.input[1], piece.input[2], axis, shape)

    def _select(self, scatter: NodeProto, found: _Assignment) -> None:
        """Bind the result of `scatter` to a selection. Negative positions count from the end."""
        importer, result = self._importer, scatter.output[0]
        prefix = f"{result}.slice"
        while any(name.startswith(prefix) for name in (*importer.values, *self._made_by)):
            prefix += "_"
        extent = found.shape[found.axis]
        line = [extent if a == found.axis else 1 for a in range(len(found.shape))]
        for name in (found.start, found.end):
            self._add(name)
        inside = []
        for origin in (0, -extent):
            names = ("position", "before", "after", "under", "both")
            position, before, after, under, both = (f"{prefix}{origin}.{n}" for n in names)
            numbers = np.arange(origin, origin + extent, dtype=np.int64).reshape(line)
            importer.hold(position, numbers)
            importer.add_node(_node("Less", [position, found.start], before))
            importer.add_node(_node("Not", [before], after))
            importer.add_node(_node("Less", [position, found.end], under))
            importer.add_node(_node("And", [after, under], both))
            inside.append(both)
        importer.add_node(_node("Or", inside, f"{prefix}.inside"))
        importer.add_node(_node("Where", [f"{prefix}.inside", found.value, found.data], result))

    def _maker(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes the value `name`, if it is of one of these kinds."""
        node = self._made_by.get(name)
        if node is None or node.op_type not in kinds or node.domain:
            return None
        return node if len(node.input) >= _FEWEST_INPUTS.get(node.op_type, 2) else None

    def _is(self, name: str, wanted: list[int]) -> bool:
        """Whether the value `name` is known to be this list, or the number in it."""
        array = self._importer.constant(name) if name else None
        return array is not None and array.reshape(-1).tolist() == wanted

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The extents of the value `name` if all are known."""
        value = self._importer.values.get(name)
        kind = value.ty if isinstance(value, relax.Expr) else None
        if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
            return None
        extents = kind.shape.values
        if not all(isinstance(extent, tirx.IntImm) for extent in extents):
            return None
        return tuple(int(extent.value) for extent in extents)


def _node(operator: str, inputs: list[str], output: str) -> NodeProto:
    return NodeProto(op_type=operator, input=inputs, output=[output])
