"""Whether the graphs of an ONNX model hang together.

Checked before any tool is let loose on a model: what comes later may assume that names are
text, that every value is produced exactly once, and that what is used exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.plain_text import is_plain

# Of a name. Exporters write paths of nested modules, of a few hundred characters at most.
_LONGEST_NAME = 2048


def check_graphs(model: ModelProto, source: str) -> None:
    """Raise `ModelError` naming the node where a graph of `model` is broken."""
    _check_graph(model.graph, frozenset(), source)
    for function in model.functions:
        _check_function(function, source)


def _check_graph(graph: GraphProto, outer: frozenset[str], source: str) -> None:
    given = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    for name in (*given, *stored):
        _check_name(name, "a value", source)
    for value in (*graph.input, *graph.output):
        element = value.type.tensor_type.elem_type
        if element not in TensorProto.DataType.values():
            raise ModelError(
                f"{source}: input or output {value.name!r} has the unknown dtype {element}"
            )
        for dim in value.type.tensor_type.shape.dim:
            _check_name(dim.dim_param, "a dimension", source)
    if len(set(given)) != len(given):
        raise ModelError(f"{source}: two inputs of the graph have the same name")
    # An initializer may carry the name of an input, whose default it then is.
    names = _check_nodes(graph.node, {*given, *stored}, outer, source)
    for value in graph.output:
        _check_name(value.name, "an output", source)
        if value.name not in names:
            raise ModelError(f"{source}: output {value.name!r} of the graph is not produced")


def _check_function(function: FunctionProto, source: str) -> None:
    for name in (function.name, function.domain, *function.input, *function.output):
        _check_name(name, "a function", source)
    names = _check_nodes(function.node, set(function.input), frozenset(), source)
    for name in function.output:
        if name not in names:
            raise ModelError(f"{source}: output {name!r} of a function is not produced")


def _check_nodes(
    nodes: Sequence[NodeProto], given: set[str], outer: frozenset[str], source: str
) -> frozenset[str]:
    """All names in scope after `nodes`, which may come in any order."""
    produced = set(given)
    for node in nodes:
        _check_text(node, source)
        for name in node.output:
            if name in produced:
                raise ModelError(f"{_describe(node, source)}: value {name!r} is produced twice")
            if name:
                produced.add(name)
    names = outer | produced
    for node in nodes:
        for name in node.input:
            if name and name not in names:
                raise ModelError(
                    f"{_describe(node, source)}: input {name!r} is produced by no node"
                )
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _check_graph(graph, names, source)
    return names


def _check_text(node: NodeProto, source: str) -> None:
    texts: Iterable[object] = (node.name, node.op_type, node.domain, *node.input, *node.output)
    for text in texts:
        _check_name(text, "a node", source)
    for attribute in node.attribute:
        _check_name(attribute.name, "an attribute", source)
    if not node.op_type:
        raise ModelError(f"{_describe(node, source)}: the node names no operator")


def _check_name(name: object, what: str, source: str) -> None:
    # Protobuf hands out bytes where a string is not valid UTF-8.
    if not isinstance(name, str):
        raise ModelError(f"{source}: the name {name!r} of {what} is not valid text")
    if len(name) > _LONGEST_NAME:
        raise ModelError(
            f"{source}: the name {name[:40]!r}... of {what} has {len(name)} characters; "
            f"{_LONGEST_NAME} are allowed"
        )
    if not is_plain(name):
        raise ModelError(
            f"{source}: the name {name!r} of {what} holds control characters or line breaks; "
            "rename it in the model"
        )


def _describe(node: NodeProto, source: str) -> str:
    label = node.name or (node.output[0] if node.output else "")
    return f"{source}: node {label!r} ({node.op_type})"
