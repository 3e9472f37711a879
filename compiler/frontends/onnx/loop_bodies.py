"""Bodies of loops before they become functions: what does not change is taken out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnx import GraphProto, NodeProto

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.module.vm_functions import MOST_TURNS

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.onnx.importer import GraphImporter

# They give something else in every turn.
_RANDOM = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip


class LoopBodies:
    """Bodies of Loop and Scan nodes in the graph that `importer` is walking."""

    def __init__(self, importer: GraphImporter) -> None:
        self._importer = importer

    def without_unchanged(
        self, node: NodeProto, body: GraphProto, inputs: int, outputs: int
    ) -> tuple[NodeProto, GraphProto]:
        """Node and body without the states that the body hands on as they are.

        The body reads them from around it, where weights are constants that kernels can pack.
        `inputs` and `outputs` of the body come before its states.
        """
        same = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
        values, inside = self._importer.values, _names_inside(body)
        kept, kept_body, aliases = NodeProto(), GraphProto(), []
        kept.CopyFrom(node)
        kept_body.CopyFrom(body)
        for place in reversed(range(len(node.input) - inputs)):
            outer, own = node.input[inputs + place], body.input[inputs + place].name
            result = body.output[outputs + place].name
            while result in same and result != own:
                result = same[result]
            if result != own or (outer != own and outer in inside):
                continue
            if outer != own:
                aliases.append(NodeProto(op_type="Identity", input=[outer], output=[own]))
            if place < len(node.output):
                if node.output[place]:
                    values[node.output[place]] = values[outer]
                del kept.output[place]
            del kept.input[inputs + place]
            del kept_body.input[inputs + place], kept_body.output[outputs + place]
        own_nodes = list(kept_body.node)
        del kept_body.node[:]
        kept_body.node.extend([*aliases, *own_nodes])
        return kept, kept_body

    @contextmanager
    def computed_once(self, node: NodeProto, body: GraphProto) -> Iterator[GraphProto]:
        """The body of a loop without what is the same in every turn, which is computed before it.

        Only kernels go before it: what is evaluated may fail, and a loop without a turn must not.
        """
        importer, outer = self._importer, self._importer.values
        importer.values = dict(outer)
        changing = {value.name for value in body.input}
        rest = []
        try:
            importer.add_initializers(body)
            for inner in body.node:
                if changing.intersection(inner.input) or not self._is_a_kernel(inner):
                    changing.update(inner.output)
                    rest.append(inner)
                else:
                    importer.add_node(inner)
            kept = GraphProto()
            kept.CopyFrom(body)
            del kept.node[:]
            kept.node.extend(rest)
            yield kept
            outer.update((name, importer.values[name]) for name in node.output if name)
        finally:
            importer.values = outer

    def _is_a_kernel(self, node: NodeProto) -> bool:
        """Whether a node is translated and depends on nothing but its inputs."""
        if node.op_type in _RANDOM or any(a.HasField("g") or a.graphs for a in node.attribute):
            return False
        return not self._importer.dynamic.concerns(node)

    def check_end(self, node: NodeProto, body: GraphProto) -> None:
        """Raise ModelError for a loop that nothing ends within the turns that the VM form takes."""
        name = node.input[0] if node.input else ""
        trips = self._importer.constant(name) if name else None
        if name and (trips is None or int(trips.reshape(-1)[0]) <= MOST_TURNS):
            return
        initial = self._importer.constant(node.input[1]) if any(node.input[1:2]) else None
        if initial is not None and not initial.reshape(-1)[:1].any():
            return
        same = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
        condition = body.output[0].name
        while condition in same:
            condition = same.pop(condition)
        known = self._importer.constant(condition)
        if condition == body.input[1].name or (known is not None and bool(known.reshape(-1)[0])):
            raise ModelError(
                f"{self._importer.describe(node)}: nothing ends this loop within {MOST_TURNS:,} "
                "turns: its condition is always true; give it a number of turns"
            )


def _names_inside(graph: GraphProto) -> set[str]:
    """The names that `graph` and the graphs in it give to values."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(node.output)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                names |= _names_inside(subgraph)
    return names
