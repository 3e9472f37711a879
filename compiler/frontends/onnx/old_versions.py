"""Models of operator sets before the seventh, rewritten as models of the seventh.

What was an attribute and became an input, was called otherwise, or was broadcast along an `axis`
is spelled as it has been since; the converters then need not know the difference. (The version
converter of the onnx package does the same for some operators and refuses Pad, Split, Cast, Tile
and every graph whose shapes it cannot infer.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.forked import ToolError
from tinsmith.compiler.frontends.onnx.guard import in_child

_WRITTEN = 7
_BROADCAST = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"}
)
_STANDARD_DOMAINS = ("", "ai.onnx")


def modernized(model: ModelProto, source: str) -> ModelProto:
    """`model` in operator set 7, or as it is if it has that or a later one.

    Raises `ModelError` naming the node that has no counterpart.
    """
    versions = {e.domain: e.version for e in model.opset_import if e.domain in _STANDARD_DOMAINS}
    if not versions or min(versions.values()) >= _WRITTEN:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    try:
        typed = in_child(onnx.shape_inference.infer_shapes, model).graph
    except ToolError:
        typed = model.graph  # what the file itself says of ranks has to do
    _rewrite_graph(result.graph, typed, source)
    for entry in result.opset_import:
        if entry.domain in _STANDARD_DOMAINS:
            entry.version = _WRITTEN
    # What the file says about intermediate shapes was said of other nodes.
    del result.graph.value_info[:]
    return result


@dataclass
class _Rewriting:
    """One graph while its nodes are rewritten: what is known of its values, and new ones."""

    graph: GraphProto
    source: str
    ranks: dict[str, int]
    known: dict[str, np.ndarray]
    nodes: list[NodeProto] = field(default_factory=list)

    def constant(self, node: NodeProto, role: str, array: np.ndarray) -> str:
        """The name of a new initializer."""
        name = f"{node.output[0]}/{role}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def rank(self, node: NodeProto, position: int) -> int:
        """The rank of the input at `position`."""
        name = node.input[position]
        if name not in self.ranks:
            raise self.error(node, f"the rank of {name!r} is not known")
        return self.ranks[name]

    def error(self, node: NodeProto, reason: str) -> ModelError:
        label = " ".join((node.name or node.output[0]).split())
        return ModelError(
            f"{self.source}: node {label!r} ({node.op_type}) of an old operator set: {reason}"
        )


def _rewrite_graph(graph: GraphProto, typed: GraphProto, source: str) -> None:
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*typed.input, *typed.value_info, *typed.output)
        if value.type.tensor_type.HasField("shape")
    }
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranks |= {name: array.ndim for name, array in known.items()}
    work = _Rewriting(graph, source, ranks, known)
    for node in graph.node:
        if node.domain in _STANDARD_DOMAINS:
            _drop(node, "consumed_inputs", "is_test")
            if node.op_type in _BROADCAST:
                _broadcast(node, work)
            elif node.op_type in _RULES:
                _RULES[node.op_type](node, work)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    _rewrite_graph(subgraph, subgraph, source)
        work.nodes.append(node)
    del graph.node[:]
    graph.node.extend(work.nodes)


def _drop(node: NodeProto, *names: str) -> dict[str, onnx.AttributeProto]:
    """Remove the attributes `names` of `node`; answers with those that it had."""
    dropped = {}
    for name in names:
        for position, attribute in enumerate(node.attribute):
            if attribute.name == name:
                dropped[name] = onnx.AttributeProto()
                dropped[name].CopyFrom(attribute)
                del node.attribute[position]
                break
    return dropped


def _broadcast(node: NodeProto, work: _Rewriting) -> None:
    """The axes of the second operand are those of the first from `axis` on."""
    dropped = _drop(node, "axis", "broadcast")
    if "axis" not in dropped or not dropped.get("broadcast", onnx.AttributeProto()).i:
        return
    rank, own = work.rank(node, 0), work.rank(node, 1)
    axis = dropped["axis"].i
    behind = rank - (axis + rank if axis < 0 else axis) - own
    if behind < 0:
        raise work.error(node, f"axis {axis} leaves no room for an operand of {own} dimensions")
    _append_axes(node, 1, own, behind, work)


def _append_axes(node: NodeProto, position: int, rank: int, count: int, work: _Rewriting) -> None:
    """Give the input at `position`, of `rank` axes, `count` more behind them."""
    if not count:
        return
    name = f"{node.output[0]}/operand"
    axes = list(range(rank, rank + count))
    work.nodes.append(onnx.helper.make_node("Unsqueeze", [node.input[position]], [name], axes=axes))
    node.input[position] = name


def _prelu(node: NodeProto, work: _Rewriting) -> None:
    rank, own = work.rank(node, 0), work.rank(node, 1)
    if own == 1 and rank > 2:
        _append_axes(node, 1, 1, rank - 2, work)


def _gemm(node: NodeProto, work: _Rewriting) -> None:
    _drop(node, "broadcast")


def _reshape(node: NodeProto, work: _Rewriting) -> None:
    shape = _drop(node, "shape")
    if shape:
        sizes = np.array(shape["shape"].ints, np.int64)
        node.input.append(work.constant(node, "shape", sizes))


def _pad(node: NodeProto, work: _Rewriting) -> None:
    for attribute in node.attribute:
        if attribute.name == "paddings":
            attribute.name = "pads"


def _concat(node: NodeProto, work: _Rewriting) -> None:
    if not any(attribute.name == "axis" for attribute in node.attribute):
        node.attribute.append(onnx.helper.make_attribute("axis", 1))


def _split(node: NodeProto, work: _Rewriting) -> None:
    if len(node.input) > 1:
        sizes = work.known.get(node.input[1])
        if sizes is None:
            raise work.error(node, "the sizes of the parts depend on data")
        node.attribute.append(onnx.helper.make_attribute("split", [int(n) for n in sizes]))
        del node.input[1:]


def _cast(node: NodeProto, work: _Rewriting) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.s:
            name = attribute.s.decode(errors="replace").upper()
            if name not in TensorProto.DataType.keys():  # noqa: SIM118 - no mapping
                raise work.error(node, f"there is no dtype {name!r}")
            number = TensorProto.DataType.Value(name)
            attribute.CopyFrom(onnx.helper.make_attribute("to", number))


def _tile(node: NodeProto, work: _Rewriting) -> None:
    if len(node.input) != 3:
        return
    count, axis = (work.known.get(name) for name in node.input[1:])
    if count is None or axis is None:
        raise work.error(node, "what is repeated how often depends on data")
    repeats = np.ones(work.rank(node, 0), np.int64)
    repeats[int(axis.reshape(-1)[0])] = int(count.reshape(-1)[0])
    del node.input[1:]
    node.input.append(work.constant(node, "repeats", repeats))


def _upsample(node: NodeProto, work: _Rewriting) -> None:
    old = _drop(node, "height_scale", "width_scale")
    if old:
        scales = [1.0, 1.0] + [
            old[n].f if n in old else 1.0 for n in ("height_scale", "width_scale")
        ]
        node.attribute.append(onnx.helper.make_attribute("scales", scales))
    for attribute in node.attribute:
        if attribute.name == "mode" and attribute.s == b"bilinear":
            attribute.s = b"linear"


def _batch_norm(node: NodeProto, work: _Rewriting) -> None:
    spatial = _drop(node, "spatial")
    if spatial and not spatial["spatial"].i:
        raise work.error(node, "statistics for each activation (spatial=0) are not supported")
    del node.output[1:]  # running statistics, of use in training only


def _power_of_norm(node: NodeProto, work: _Rewriting) -> None:
    for attribute in node.attribute:
        if attribute.name == "p" and attribute.type == onnx.AttributeProto.FLOAT:
            attribute.CopyFrom(onnx.helper.make_attribute("p", int(attribute.f)))


def _recurrent(node: NodeProto, work: _Rewriting) -> None:
    _drop(node, "output_sequence")


_RULES: dict[str, Callable[[NodeProto, _Rewriting], None]] = {
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "GlobalLpPool": _power_of_norm,
    "LSTM": _recurrent,
    "LpPool": _power_of_norm,
    "PRelu": _prelu,
    "Pad": _pad,
    "RNN": _recurrent,
    "Reshape": _reshape,
    "Split": _split,
    "Tile": _tile,
    "Upsample": _upsample,
}
