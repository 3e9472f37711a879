"""Files whose nodes are in no particular order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tinsmith
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.frontends.onnx.order import in_order


def _model(nodes: list[onnx.NodeProto], output: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "unordered",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    return helper.make_graph(list(nodes), "branch", [], [out])


def test_nodes_come_after_what_they_read() -> None:
    """As few as possible move; branches count with what they take from around them."""
    node = helper.make_node
    then = _branch(node("Add", ["inner", "late"], ["y"]), node("Neg", ["early"], ["inner"]))
    nodes = [
        node("Relu", ["x"], ["early"], "0"),
        node("If", ["yes"], ["y"], "1", then_branch=then, else_branch=_branch(
            node("Identity", ["x"], ["y"]))),
        node("Exp", ["middle"], ["late"], "2"),
        node("Sqrt", ["early"], ["middle"], "3"),
    ]  # fmt: skip
    model = _model(nodes)
    ordered = in_order(model, "m")
    assert [n.name for n in ordered.graph.node] == ["0", "3", "2", "1"]
    inner = next(a.g for a in ordered.graph.node[3].attribute if a.name == "then_branch")
    assert [n.op_type for n in inner.node] == ["Neg", "Add"]
    assert [n.name for n in model.graph.node] == ["0", "1", "2", "3"], "the caller's own"
    onnx.checker.check_model(ordered)
    assert in_order(ordered, "m") is ordered
    x = np.float32([[0, 1, -2], [3, 4, 0.5]])
    with tinsmith.compile(model, runner=False, static_library=False, golden=False) as module:
        early = np.maximum(x, 0)
        np.testing.assert_allclose(module(x)["y"], np.exp(np.sqrt(early)) - early, rtol=1e-5)


def test_a_cycle_is_refused() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Exp", ["b"], ["y"]),
    ]
    with pytest.raises(ModelError, match=r"node 'first' \(Add\) is part of a cycle"):
        import_onnx(_model(nodes))
