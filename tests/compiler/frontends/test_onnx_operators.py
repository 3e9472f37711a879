"""What happens to operators nobody knows, and to nodes that cannot be converted."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.compiler.frontends.small_models import model, random, run, value
from tinsmith.compiler.errors import ModelError, UnsupportedOpError
from tinsmith.compiler.frontends.onnx.model import import_onnx


def test_all_unknown_operators_are_listed_at_once() -> None:
    domain = "com.example"
    nodes = [
        helper.make_node("Twirl", ["x"], ["a"], name="first", domain=domain),
        helper.make_node("Twirl", ["a"], ["b"], name="second", domain=domain),
        helper.make_node("RandomNormalLike", ["b"], ["y"], name="third"),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    proto = model(nodes, [value("x", [3, 3])], ["y"], opset_imports=imports)
    with pytest.raises(UnsupportedOpError) as caught:
        import_onnx(proto)
    assert caught.value.operators == {
        "com.example.Twirl": ("first", "second"),
        "RandomNormalLike": ("third",),
    }
    assert "com.example.Twirl x2 (first, second)" in str(caught.value)


def test_unknown_operators_in_branches_are_found() -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node("RandomNormalLike", ["x"], [name], name=f"det_in_{name}")],
            name,
            [],
            [value(name, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    node = helper.make_node("If", ["condition"], ["y"], name="choice", **branches)
    proto = model([node], [value("x", [3, 3]), value("condition", [], 9)], ["y"])
    with pytest.raises(UnsupportedOpError, match="choice/det_in_then_branch"):
        import_onnx(proto)


def test_the_domain_of_an_operator_matters() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    with pytest.raises(UnsupportedOpError, match=r"com\.example\.Relu x1"):
        import_onnx(model([node], [value("x", [3])], ["y"], opset_imports=imports))


def test_local_functions_are_inlined() -> None:
    imports = [helper.make_opsetid("", 18)]
    function = helper.make_function(
        "com.example",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        imports,
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="com.example")
    proto = model(
        [node],
        [value("x", [3])],
        ["y"],
        opset_imports=[*imports, helper.make_opsetid("com.example", 1)],
        functions=[function],
    )
    data = random((3,))
    np.testing.assert_allclose(run(import_onnx(proto), data)[0], 2 * data)


def test_functions_of_the_standard_are_inlined() -> None:
    proto = model([helper.make_node("Celu", ["x"], ["y"], alpha=2.0)], [value("x", [16])], ["y"])
    data = random((16,))
    expected = np.maximum(data, 0) + np.minimum(0, 2 * (np.exp(data / 2) - 1))
    np.testing.assert_allclose(run(import_onnx(proto), data)[0], expected, rtol=1e-5)


def test_a_failing_converter_names_the_node_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="too_wide"),
    ]
    proto = model(nodes, [value("x", [2, 3])], ["y"], {"w": np.zeros((5, 2), np.float32)})
    with pytest.raises(ModelError) as caught:
        import_onnx(proto)
    message = str(caught.value)
    assert "node 'too_wide' (MatMul)" in message
    assert "\n" not in message
    assert caught.value.__cause__ is not None
    # Neither TVM's Python nor its C++ may add lines of their own.
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "BlockBuilder" not in captured.err


def test_a_value_that_nobody_produces_is_named() -> None:
    node = helper.make_node("Relu", ["nowhere"], ["y"], name="lost")
    with pytest.raises(ModelError, match=r"node 'lost' \(Relu\): input 'nowhere'"):
        import_onnx(model([node], [value("x", [2])], ["y"]))


def test_an_output_that_nobody_produces_is_named() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelError, match="output 'nowhere'"):
        import_onnx(model([node], [value("x", [2])], ["y", "nowhere"]))


def test_weights_are_constants_and_names_are_identifiers() -> None:
    node = helper.make_node("MatMul", ["input:0", "onnx::w.1"], ["out/1"])
    weights = np.ones((4, 2), np.float32)
    proto = model([node], [value("input:0", [1, 4])], ["out/1"], {"onnx::w.1": weights})
    imported = import_onnx(proto)
    assert imported.input_names == ("input:0",)
    assert imported.output_names == ("out/1",)
    parameters = imported.module["main"].params
    assert [parameter.name for parameter in parameters] == ["input_0"]


def test_large_integers_keep_their_value() -> None:
    # "To the end" is the largest int64; as an int32 it would be -1 and drop the last entry.
    node = helper.make_node("Slice", ["x", "start", "end", "axes"], ["y"])
    constants = {
        "start": np.array([1]),
        "end": np.array([np.iinfo(np.int64).max]),
        "axes": np.array([0]),
    }
    imported = import_onnx(model([node], [value("x", [5])], ["y"], constants))
    assert imported.output_shapes == ((4,),)
    data = random((5,))
    np.testing.assert_array_equal(run(imported, data)[0], data[1:])
