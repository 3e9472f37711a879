"""Whether what an optimiser made of an ONNX graph still is one, with the same interface."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto


def unsoundness(folded: ModelProto, model: ModelProto) -> str:
    """What is wrong with `folded`, made from `model`; empty if nothing is.

    Inputs and outputs have the names, order, dtypes and (inputs) shapes that they had; every
    value is produced once, and before it is used.
    """
    before, after = model.graph, folded.graph
    if _inputs(after) != _inputs(before):
        return "its inputs are others"
    if [value.name for value in after.output] != [value.name for value in before.output]:
        return "its outputs are others"
    for was, value in zip(before.output, after.output, strict=True):
        known, found = (v.type.tensor_type.elem_type for v in (was, value))
        if known and found and known != found:
            return f"its output {value.name!r} has another dtype"
    return _broken(after, frozenset())


def _inputs(graph: GraphProto) -> list[tuple[str, int, tuple[int, ...]]]:
    """Name, dtype and shape of each input that has to be given."""
    stored = {tensor.name for tensor in graph.initializer}
    return [_described(value) for value in graph.input if value.name not in stored]


def _described(value: ValueInfoProto) -> tuple[str, int, tuple[int, ...]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)


def _broken(graph: GraphProto, outer: frozenset[str]) -> str:
    """The first value of a graph that is produced twice, or used before it is there."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    stored = [tensor.name for tensor in graph.initializer]
    if len(set(stored)) != len(stored):
        return f"it stores {next(name for name in stored if stored.count(name) > 1)!r} twice"
    for node in graph.node:
        scope = outer | given
        for name in node.input:
            if name and name not in scope:
                return f"it uses {name!r} before it is there"
        for inner in _graphs(node):
            reason = _broken(inner, frozenset(scope))
            if reason:
                return reason
        for name in node.output:
            if name and name in given:
                return f"it produces {name!r} twice"
        given |= {name for name in node.output if name}
    lost = next((v.name for v in graph.output if v.name not in given | outer), None)
    return "" if lost is None else f"it does not produce {lost!r}"


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
