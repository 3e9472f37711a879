"""16-bit floats become float32 inside a model, and nowhere else."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import tvm_ffi
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import linear_model, model, original, value
from tvm.ir import GenericConst

from tinsmith.compiler.frontends.onnx.halves import HALVES, widen_halves
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import Pipeline, graph_passes
from tinsmith.targets.half_weights import half_dtype

DTYPES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
WEIGHTS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def typed(model_: ModelProto, dtype: int) -> ModelProto:
    for output in model_.graph.output:
        output.type.tensor_type.elem_type = dtype
    return model_


def dtypes_inside(model_: ModelProto) -> set[int]:
    """Of all values but the inputs and outputs of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model_, strict_mode=True)
    values = [v.type.tensor_type.elem_type for v in inferred.graph.value_info]
    return {*values, *(t.data_type for t in inferred.graph.initializer)}


def test_other_models_are_left_alone() -> None:
    linear = linear_model()
    assert widen_halves(linear) is linear


@pytest.mark.parametrize("dtype", HALVES)
def test_borders_keep_their_dtype(dtype: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
        helper.make_node("Identity", ["w"], ["z"]),
    ]
    weights = {"w": WEIGHTS.astype(DTYPES[dtype])}
    outputs = ["y", "z", "w"]
    half = typed(model(nodes, [value("x", [2, 4], dtype)], outputs, weights), dtype)
    wide = widen_halves(half)
    assert half.graph.initializer[0].data_type == dtype  # the given model is as it was
    assert dtypes_inside(wide) == {TensorProto.FLOAT}
    imported = import_onnx(half)
    name = TensorProto.DataType.Name(dtype).lower()
    assert imported.input_dtypes == (name,)
    assert imported.output_dtypes == (name,) * 3
    assert imported.output_names == tuple(outputs)
    assert original(imported).graph.initializer[0].data_type == dtype


def test_a_cast_of_the_file_rounds() -> None:
    """1 + 2^-12 is no float16; the islands in float32 keep it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["h", "one"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["n"], ["m"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["m"], ["z"], to=TensorProto.FLOAT),
    ]
    one = {"one": np.ones(1, np.float16)}
    inputs = [value("x", [1]), value("n", [1], TensorProto.INT64)]
    wide = widen_halves(model(nodes, inputs, ["y", "z"], one))
    given = {"x": np.array([1 + 2**-12], np.float32), "n": np.array([2049])}
    y, z = ReferenceEvaluator(wide).run(["y", "z"], given)
    assert y == 2.0 and z == 2048.0


def test_subgraphs_read_what_is_renamed_unless_they_have_their_own() -> None:
    def branch(name: str, own: bool) -> onnx.GraphProto:
        local = [numpy_helper.from_array(np.full(2, 5, np.float16), "x")] if own else []
        node = helper.make_node("Add", ["x", "x"], [name])
        return helper.make_graph(
            [node], name, [], [value(name, [2], TensorProto.FLOAT16)], initializer=local
        )

    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("a", False), else_branch=branch("b", True)
    )
    inputs = [value("c", [], TensorProto.BOOL), value("x", [2], TensorProto.FLOAT16)]
    wide = widen_halves(typed(model([choice], inputs, ["y"]), TensorProto.FLOAT16))
    branches = next(n for n in wide.graph.node if n.op_type == "If").attribute
    read = {a.name: list(a.g.node[0].input) for a in branches}
    (renamed,) = (n.output[0] for n in wide.graph.node if list(n.input) == ["x"])
    assert read == {"then_branch": [renamed] * 2, "else_branch": ["x"] * 2}
    given = {"c": np.array(True), "x": np.array([1, 2], np.float16)}
    (y,) = ReferenceEvaluator(wide).run(["y"], given)
    assert y.dtype == np.float16 and y.tolist() == [2, 4]


def test_dtypes_named_by_attributes() -> None:
    nodes = [
        helper.make_node("EyeLike", ["x"], ["e"], dtype=TensorProto.FLOAT16),
        helper.make_node(
            "ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float16))
        ),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float16(2))),
        helper.make_node("Sum", ["e", "c", "k"], ["y"]),
    ]
    shape = {"s": np.array([2, 2])}
    half = typed(model(nodes, [value("x", [2, 2])], ["y"], shape), TensorProto.FLOAT16)
    wide = widen_halves(half)
    assert dtypes_inside(wide) == {TensorProto.FLOAT, TensorProto.INT64}


def test_functions_of_the_model_are_widened() -> None:
    body = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float16(2))),
        helper.make_node("Mul", ["a", "k"], ["b"]),
    ]
    function = helper.make_function(
        "own", "Double", ["a"], ["b"], body, [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Double", ["x"], ["y"], domain="own")
    half = model(
        [node],
        [value("x", [2], TensorProto.FLOAT16)],
        ["y"],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
        functions=[function],
    )
    imported = import_onnx(typed(half, TensorProto.FLOAT16))
    assert imported.output_dtypes == ("float16",)


def test_weights_before_a_normalisation_stay_in_16_bits() -> None:
    """Multiplied by its factors they would need 32, and a module twice the memory."""
    random = np.random.default_rng(0)
    arrays = {
        "w": random.standard_normal((32, 32, 1, 1)),
        **{name: 1 + random.random(32) for name in ("scale", "shift", "mean", "variance")},
    }
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *list(arrays)[1:]], ["y"]),
    ]
    given = [value("x", (1, 32, 4, 4), TensorProto.FLOAT16)]
    made = typed(model(nodes, given, ["y"], halves), TensorProto.FLOAT16)
    imported = Pipeline(graph_passes()).run(import_onnx(made).module).module
    large: list[np.ndarray] = []
    tvm_ffi.structural_walk(
        imported["main"].body,
        (GenericConst, lambda c: large.append(c.value.numpy())),
    )
    assert [half_dtype(a) for a in large if a.size == 32 * 32] == ["float16"]
