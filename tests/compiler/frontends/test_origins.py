"""The nodes of a model behind each kernel, by the names that its file gives them."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from tinsmith.compiler.frontends.onnx.model import node_names
from tinsmith.compiler.frontends.origins import nodes_behind


def model() -> ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["block/first:0"], name="block/first"),
        helper.make_node("Exp", ["block/first:0"], ["7"]),
        helper.make_node("Neg", ["7"], ["y"], name="\x1b[31mred" + "n" * 999),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])]
    )
    return helper.make_model(graph)


def test_nodes_are_named_as_in_the_file() -> None:
    computed = {
        "fused_relu_exp": ("lv3", "block_first_0", "v_7", "gv", "t2", "v_7"),
        "negative": ("y",),
        "copy": ("lv", "gv1"),
    }
    found = nodes_behind(computed, node_names(model()))
    # One without a name is called by its output; what passes made up is left out.
    assert found["fused_relu_exp"] == ("block/first", "7")
    assert found["copy"] == ()
    (name,) = found["negative"]
    assert name.startswith("\\x1b[31mred") and len(name) < 250


def test_without_a_model_results_stand_for_themselves() -> None:
    assert nodes_behind({"relu": ("block_first_0", "lv")}, {}) == {"relu": ("block_first_0",)}
