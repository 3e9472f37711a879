"""Inputs and outputs of odd kinds, and an optimiser that breaks a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tinsmith
from tinsmith.compiler.frontends.onnx import shapes
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.frontends.onnx.soundness import unsoundness

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def branch(name: str, operator: str) -> onnx.GraphProto:
    """A graph whose inner `t` has the name of a value outside."""
    return helper.make_graph(
        [helper.make_node(operator, ["x"], ["t"]), helper.make_node("Neg", ["t"], [name])],
        name,
        [],
        [helper.make_tensor_value_info(name, FLOAT, [2, 3])],
    )


def odd_interface() -> ModelProto:
    """Outputs that are inputs, weights, constants, and one tensor under several names."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["y_again"]),
        helper.make_node("Identity", ["x"], ["x_again"]),
        helper.make_node("Reshape", ["x", "flat"], ["x_flat"]),
        helper.make_node("Reshape", ["y", "flat"], ["y_flat"]),
        helper.make_node("Add", ["w", "w"], ["twice"]),
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.array(3))),
        helper.make_node(
            "Constant", [], ["flags"], value=numpy_helper.from_array(np.array([True, False]))
        ),
        helper.make_node("Clip", ["x", "", "half"], ["clipped"]),
        helper.make_node("Dropout", ["clipped"], ["kept", ""]),
        helper.make_node("Split", ["x"], ["upper", "lower"], axis=0, num_outputs=2),
        helper.make_node(
            "If", ["condition"], ["chosen"],
            then_branch=branch("a", "Relu"), else_branch=branch("b", "Abs"),
        ),
        helper.make_node("Exp", ["x"], ["t"]),
        helper.make_node("Add", ["t", "chosen"], ["sum"]),
    ]  # fmt: skip
    inputs = {
        "x": (FLOAT, [2, 3]), "unused": (INT64, [4]), "scalar": (FLOAT, []),
        "condition": (BOOL, []), "empty": (FLOAT, [0, 3]),
    }  # fmt: skip
    outputs = {
        "x": FLOAT, "y": FLOAT, "y_again": FLOAT, "x_again": FLOAT, "x_flat": FLOAT,
        "y_flat": FLOAT, "w": FLOAT, "twice": FLOAT, "three": INT64, "flags": BOOL, "kept": FLOAT,
        "upper": FLOAT, "lower": FLOAT, "sum": FLOAT, "t": FLOAT, "scalar": FLOAT,
        "condition": BOOL, "empty": FLOAT,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()],
        [
            numpy_helper.from_array(np.full((2, 3), 2, np.float32), "w"),
            numpy_helper.from_array(np.array([6]), "flat"),
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_outputs_may_be_inputs_weights_and_constants(tmp_path: Path) -> None:
    report = tinsmith.compile_to(
        odd_interface(), tmp_path / "m", runner=False, static_library=False
    )
    names = [value.name for value in odd_interface().graph.output]
    assert [difference.name for difference in report.differences] == names
    assert all(difference.agrees for difference in report.differences)
    x = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)
    arrays = {
        "x": x, "unused": np.arange(4), "scalar": np.array(7, np.float32),
        "condition": np.array(True), "empty": np.zeros((0, 3), np.float32),
    }  # fmt: skip
    with tinsmith.load(report.path) as module:
        found = {name: value.copy() for name, value in module(arrays).items()}
    assert found["scalar"] == 7 and found["three"] == 3 and found["condition"]
    assert found["flags"].tolist() == [True, False]
    for name, expected in {
        "x": x, "x_again": x, "x_flat": x.ravel(), "y_again": np.maximum(x, 0), "upper": x[:1],
        "w": np.full((2, 3), 2), "twice": np.full((2, 3), 4), "kept": np.minimum(x, 0.5),
        "sum": np.exp(x) - np.maximum(x, 0), "t": np.exp(x), "empty": x[:0],
    }.items():  # fmt: skip
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


def test_models_that_return_their_input_alone_are_imported() -> None:
    graph = helper.make_graph(
        [],
        "nothing",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("x", FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert import_onnx(model).output_names == ("x",)


def chain() -> ModelProto:
    """x -> Relu -> Neg -> y, with a weight added."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Add", ["b", "w"], ["y"]),
        ],
        "chain",
        [helper.make_tensor_value_info("x", FLOAT, [3])],
        [helper.make_tensor_value_info("y", FLOAT, [3])],
        [numpy_helper.from_array(np.ones(3, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def swap_nodes(model: ModelProto) -> None:
    nodes = [model.graph.node[i] for i in (1, 0, 2)]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


FAULTS: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "order": (swap_nodes, "it uses 'a' before it is there"),
    "lost node": (lambda m: m.graph.node.pop(0), "it uses 'a' before it is there"),
    "twice": (lambda m: m.graph.node.append(m.graph.node[0]), "it produces 'a' twice"),
    "stored twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]), "it stores 'w' twice",
    ),
    "stored and produced": (
        lambda m: m.graph.initializer.append(
            numpy_helper.from_array(np.ones(3, np.float32), "a")
        ),
        "it produces 'a' twice",
    ),
    "lost weight": (lambda m: m.graph.initializer.pop(), "it uses 'w' before it is there"),
    "lost output": (lambda m: m.graph.node.pop(), "it does not produce 'y'"),
    "other output": (
        lambda m: setattr(m.graph.output[0], "name", "b"), "its outputs are others",
    ),
    "other dtype": (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", INT64),
        "its output 'y' has another dtype",
    ),
    "renamed input": (lambda m: setattr(m.graph.input[0], "name", "z"), "its inputs are others"),
    "more inputs": (lambda m: m.graph.input.add(name="z"), "its inputs are others"),
    "other shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 4),
        "its inputs are others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_an_optimiser_breaks_is_named(fault: str) -> None:
    broken = chain()
    assert unsoundness(broken, chain()) == ""
    change, reason = FAULTS[fault]
    change(broken)
    assert unsoundness(broken, chain()) == reason


def test_graphs_inside_nodes_are_looked_into() -> None:
    model = odd_interface()
    assert unsoundness(model, odd_interface()) == ""
    node = next(node for node in model.graph.node if node.op_type == "If")
    inner = next(attribute.g for attribute in node.attribute if attribute.name == "then_branch")
    inner.node[0].input[0] = "nowhere"
    assert unsoundness(model, odd_interface()) == "it uses 'nowhere' before it is there"


def test_an_unsound_folding_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = chain()
    swap_nodes(broken)
    monkeypatch.setattr(shapes, "in_child", lambda function, model: broken)
    (note,) = import_onnx(chain()).notes
    assert "unsound (it uses 'a' before it is there)" in note
