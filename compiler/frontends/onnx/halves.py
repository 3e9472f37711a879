"""Half-precision ONNX models computed in float32.

Processors compute in float32 what is stored in 16 bits, and so does ONNX Runtime. Between
operators nothing is rounded: results are nearer to those of the model's real numbers than if
every tensor were stored in 16 bits. What the file stores so stays so: inputs, outputs, and the
weights, which kernels widen as they read them (`tinsmith.targets.cpu.half_weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

# Attributes whose value is the dtype of a result, or that of the arithmetic.
_DTYPE_ATTRIBUTES = frozenset(
    {"dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type"}
)


def widen_halves(model: ModelProto) -> ModelProto:
    """`model` with float32 in the place of float16 and bfloat16, but for inputs and outputs.

    Given x (float16) -> Conv(const w float16) -> y (float16), the result is
    x -> Cast(float32) -> Conv(const w float32) -> Cast(float16) -> y.

    A `Cast` to 16 bits that the file asks for still rounds: Cast(float16), Cast(float32). The
    model itself is returned where it has no 16-bit floats.
    """
    if not _has_halves(model):
        return model
    widened = ModelProto()
    widened.CopyFrom(model)
    for function in widened.functions:
        _Widener(_names_of(function.node)).rewrite_nodes(function.node)
    _Widener(_names_in(widened.graph)).rewrite_model(widened.graph)
    return widened


class _Widener:
    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def rewrite_model(self, graph: GraphProto) -> None:
        """The outer graph, whose inputs and outputs keep their names and dtypes."""
        stored = {tensor.name for tensor in graph.initializer}
        inputs = {
            value.name: value.type.tensor_type.elem_type
            for value in graph.input
            if value.type.tensor_type.elem_type in HALVES and value.name not in stored
        }
        outputs = {
            value.name: value.type.tensor_type.elem_type
            for value in graph.output
            if value.type.tensor_type.elem_type in HALVES
        }
        wide = {name: self._fresh(name) for name in (*inputs, *outputs)}
        _rename(graph, wide)
        for value in graph.input:
            if value.name in stored:
                _widen_type(value.type)
        self._rewrite_body(graph)
        before = [_cast(name, wide[name], TensorProto.FLOAT) for name in inputs]
        # An output that is an input as well needs no node of its own.
        after = [
            _cast(wide[name], name, dtype) for name, dtype in outputs.items() if name not in inputs
        ]
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)

    def rewrite_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Replace, in place, the nodes of a graph or a function."""
        rewritten: list[NodeProto] = []
        for node in nodes:
            for attribute in node.attribute:
                self._rewrite_attribute(node, attribute)
            rewritten.extend(self._rounding(node))
        del nodes[:]  # type: ignore[attr-defined]
        nodes.extend(rewritten)  # type: ignore[attr-defined]

    def _rewrite_body(self, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for value in graph.value_info:
            _widen_type(value.type)
        self.rewrite_nodes(graph.node)

    def _rewrite_attribute(self, node: NodeProto, attribute: AttributeProto) -> None:
        for tensor in (attribute.t, *attribute.tensors):
            _widen_tensor(tensor)
        for kind in (attribute.tp, *attribute.type_protos):
            _widen_type(kind)
        for graph in (attribute.g, *attribute.graphs):
            for value in (*graph.input, *graph.output):
                _widen_type(value.type)
            self._rewrite_body(graph)
        if attribute.name in _DTYPE_ATTRIBUTES and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT

    def _rounding(self, node: NodeProto) -> Sequence[NodeProto]:
        """`node`; for a cast to 16 bits, what rounds and widens again."""
        target = next((int(a.i) for a in node.attribute if a.name == "to"), 0)
        if node.op_type != "Cast" or node.domain or target not in HALVES:
            return [node]
        # By way of float32: processors convert nothing else to 16 bits.
        single, half = (self._fresh(node.output[0]) for _ in range(2))
        return [
            _cast(node.input[0], single, TensorProto.FLOAT),
            _cast(single, half, target),
            _cast(half, node.output[0], TensorProto.FLOAT),
        ]

    def _fresh(self, name: str) -> str:
        number = 0
        while (candidate := f"{name}_wide{number or ''}") in self._taken:
            number += 1
        self._taken.add(candidate)
        return candidate


def _cast(source: str, result: str, dtype: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [result], name=result, to=dtype)


def _has_halves(model: ModelProto) -> bool:
    """Whether a 16-bit float occurs anywhere."""

    def in_graph(graph: GraphProto) -> bool:
        values = (*graph.input, *graph.output)
        return (
            any(v.type.tensor_type.elem_type in HALVES for v in values)
            or any(t.data_type in HALVES for t in graph.initializer)
            or any(map(in_node, graph.node))
        )

    def in_node(node: NodeProto) -> bool:
        return any(map(in_attribute, node.attribute))

    def in_attribute(a: AttributeProto) -> bool:
        return (
            any(t.data_type in HALVES for t in (a.t, *a.tensors))
            or any(k.tensor_type.elem_type in HALVES for k in (a.tp, *a.type_protos))
            or (a.name in (*_DTYPE_ATTRIBUTES, "to") and a.i in HALVES)
            or any(map(in_graph, (a.g, *a.graphs)))
        )

    return in_graph(model.graph) or any(in_node(n) for f in model.functions for n in f.node)


def _names_of(nodes: Iterable[NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input, node.output)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= _names_in(graph)
    return names


def _names_in(graph: GraphProto) -> set[str]:
    names = _names_of(graph.node)
    names.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))
    return names


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values in the nodes and initializers of `graph`, and where subgraphs read them."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                own = {v.name for v in (*inner.input, *inner.initializer)}
                own.update(name for n in inner.node for name in n.output)
                seen = {old: new for old, new in names.items() if old not in own}
                _rename(inner, seen)
                for value in inner.output:
                    value.name = seen.get(value.name, value.name)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type not in HALVES:
        return
    array = np.asarray(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _widen_type(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        if kind.tensor_type.elem_type in HALVES:
            kind.tensor_type.elem_type = TensorProto.FLOAT
    elif which in ("sequence_type", "optional_type"):
        _widen_type(getattr(kind, which).elem_type)
