"""Binding of input shapes: what is chosen, what is told, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import linear_model, model, original, random, run, value
from tinsmith.compiler.errors import ConfigError, ModelError, ShapeError
from tinsmith.compiler.frontends.onnx.model import import_onnx


def _sum_of(*shapes: list[int | str | None]) -> object:
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [value(name, shape) for name, shape in zip(names, shapes, strict=True)]
    return model([helper.make_node("Sum", names, ["y"])], inputs, ["y"])


def test_batch_symbol_becomes_one_with_a_note() -> None:
    imported = import_onnx(linear_model())
    assert imported.input_shapes == ((1, 4),)
    assert imported.output_shapes == ((1, 3),)
    assert imported.output_dtypes == ("float32",)
    assert any("'batch'" in note and "bound to 1" in note for note in imported.notes)


def test_given_shapes_need_no_note() -> None:
    imported = import_onnx(linear_model(), {"x": (5, 4)})
    assert imported.input_shapes == ((5, 4),)
    assert imported.notes == ()
    data = random((5, 4))
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_allclose(run(imported, data)[0], data @ weights, rtol=1e-5)


def test_a_symbol_has_one_size_everywhere() -> None:
    imported = import_onnx(_sum_of(["n", "len"], ["n", "len"]), {"x0": (2, 7)})
    assert imported.input_shapes == ((2, 7), (2, 7))


def test_symbols_bound_twice_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"'len' would be 7 in input 'x0' and 8 in input 'x1'"):
        import_onnx(_sum_of(["n", "len"], ["n", "len"]), {"x0": (2, 7), "x1": (2, 8)})


@pytest.mark.parametrize("placeholder", ["?", "-1"])
def test_placeholders_are_no_symbols(placeholder: str) -> None:
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", [1, placeholder, placeholder])],
        ["y"],
    )
    assert import_onnx(proto, {"x": (1, 3, 4)}).input_shapes == ((1, 3, 4),)


@pytest.mark.parametrize(
    ("shape", "mentions"),
    [
        (["n", 3, "h", "w"], "'h', 'w'"),
        (["sequence_length", 8], "'sequence_length'"),
        ([2, None, 8], "number 1"),
    ],
)
def test_open_dimensions_name_the_input_and_the_option(
    shape: list[int | str | None], mentions: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        import_onnx(_sum_of(shape))
    message = str(caught.value)
    assert "input 'x0'" in message
    assert "--shape x0=" in message
    assert mentions in message


@pytest.mark.parametrize(
    ("shapes", "error", "mentions"),
    [
        ({"x": (4,)}, ShapeError, "2 dimensions"),
        ({"x": (1, 5)}, ShapeError, "MatMul.*may depend on the size of input 'x', declared"),
        ({"x": (0, 4)}, ShapeError, "positive"),
        ({"z": (1, 4)}, ShapeError, "no input 'z'; it has x"),
    ],
)
def test_shapes_that_do_not_fit(
    shapes: dict[str, tuple[int, ...]], error: type[Exception], mentions: str
) -> None:
    with pytest.raises(error, match=mentions):
        import_onnx(linear_model(), shapes)


def test_declared_sizes_may_be_changed() -> None:
    """What the file says of other tensors is forgotten, the output's shape too."""
    proto = model(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["m"]),
            helper.make_node("Neg", ["m"], ["y"]),
        ],
        [value("x", [10, 3, 32, 32])],
        ["y"],
    )
    proto.graph.value_info.append(value("m", [10, 3, 1, 1]))
    imported = import_onnx(proto, {"x": (2, 3, 48, 20)})
    assert imported.output_shapes == ((2, 3, 1, 1),)
    assert any("declared [10, 3, 32, 32]" in note for note in imported.notes)
    assert not any("declared" in note for note in import_onnx(proto).notes)
    image = np.random.default_rng(0).random((2, 3, 48, 20), dtype="float32")
    (result,) = imported.reference().run({"x": image}).values()
    np.testing.assert_allclose(result, -image.mean((2, 3), keepdims=True), rtol=1e-5)


def test_inputs_bound_to_constants_disappear() -> None:
    proto = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", [2, 6]), value("shape", [2], TensorProto.INT64)],
        ["y"],
    )
    imported = import_onnx(proto, constants={"shape": np.array([3, 4])})
    assert imported.input_names == ("x",)
    assert imported.output_shapes == ((3, 4),)
    assert "input 'shape' bound to a constant" in imported.notes


def test_constants_must_fit() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "k"], ["y"])],
        [value("x", [2], TensorProto.INT64), value("k", [2], TensorProto.INT64)],
        ["y"],
    )
    with pytest.raises(ConfigError, match="does not fit its dtype int64"):
        import_onnx(proto, constants={"k": np.array([0.5, 1])})
    with pytest.raises(ShapeError, match="'k' has shape"):
        import_onnx(proto, constants={"k": np.array([1, 2, 3])})
    with pytest.raises(ConfigError, match="no input 'q'"):
        import_onnx(proto, constants={"q": np.array(1)})


def test_inputs_that_are_no_tensors_are_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    proto = model([helper.make_node("SequenceLength", ["x"], ["y"])], [sequence], ["y"])
    with pytest.raises(ModelError, match="'x' is a sequence"):
        import_onnx(proto)
    strings = value("x", [2], TensorProto.STRING)
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [strings], ["y"])
    with pytest.raises(ModelError, match="the dtype STRING"):
        import_onnx(proto)


def test_shape_arithmetic_is_folded() -> None:
    # Flattens by the batch size that Shape finds: what exporters write for x.view(x.size(0), -1).
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["size"], axis=0),
        helper.make_node("Unsqueeze", ["size", "axes"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["new_shape"], axis=0),
        helper.make_node("Reshape", ["x", "new_shape"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
    }
    imported = import_onnx(model(nodes, [value("x", ["n", 2, 3])], ["y"], constants))
    assert imported.output_shapes == ((1, 6),)


def test_the_reference_has_the_same_shapes() -> None:
    imported = import_onnx(linear_model(), {"x": (5, 4)})
    dims = original(imported).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [5, 4]
