"""Nodes in an order in which each comes after those that it reads from.

The format asks for it, but ONNX Runtime does not, and neither do all tools that write files:
its own converter to float16 puts the casts of the inputs last.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from tinsmith.compiler.errors import ModelError


def in_order(model: ModelProto, source: str) -> ModelProto:
    """`model` itself if its nodes are in order, else a copy with as few moved as that takes.

    The graphs must be well-formed. Raises ModelError naming a node that reads, over others, what
    itself produces.
    """
    if all(_positions(owner, source) is None for owner in _owners(model)):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    for owner in _owners(result):
        positions = _positions(owner, source)
        if positions is not None:
            nodes = [NodeProto.FromString(owner.node[i].SerializeToString()) for i in positions]
            del owner.node[:]
            owner.node.extend(nodes)
    return result


def _owners(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Everything that has nodes; inner graphs come after those around them."""
    waiting: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while waiting:
        owner = waiting.pop()
        yield owner
        waiting.extend(_inner(owner))


def _inner(owner: GraphProto | FunctionProto) -> Iterator[GraphProto]:
    for node in owner.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, and that the graphs inside it take from around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in graph.input}
            own.update(tensor.name for tensor in graph.initializer)
            own.update(tensor.values.name for tensor in graph.sparse_initializer)
            own.update(name for inner in graph.node for name in inner.output)
            used = {output.name for output in graph.output}
            used.update(name for inner in graph.node for name in _reads(inner))
            yield from used - own


def _positions(owner: GraphProto | FunctionProto, source: str) -> list[int] | None:
    """The order of the nodes as positions; None if they need not move."""
    producer = {name: i for i, node in enumerate(owner.node) for name in node.output if name}
    before = [{producer[name] for name in _reads(node) if name in producer} for node in owner.node]
    if all(all(j < i for j in needed) for i, needed in enumerate(before)):
        return None
    readers: list[list[int]] = [[] for _ in before]
    for i, needed in enumerate(before):
        for j in needed:
            readers[j].append(i)
    # Kahn 1962, "Topological sorting of large networks"; the first in the file goes first.
    missing = [len(needed) for needed in before]
    ready = [i for i, count in enumerate(missing) if count == 0]
    heapify(ready)
    order = []
    while ready:
        i = heappop(ready)
        order.append(i)
        for reader in readers[i]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heappush(ready, reader)
    if len(order) < len(before):
        node = owner.node[next(i for i, count in enumerate(missing) if count)]
        label = node.name or next(filter(None, node.output), "")
        raise ModelError(
            f"{source}: node {label!r} ({node.op_type}) is part of a cycle: it reads what it "
            "produces itself"
        )
    return order
