"""What operators demand of their operands reaches the inputs, through whatever lies between."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinsmith.compiler.evaluate.inputs import Domain, random_inputs
from tinsmith.compiler.frontends.onnx.domains import input_domains

FLOAT, INT64, INT32, UINT8 = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8,
)  # fmt: skip
CONSTANTS = {
    "table": np.zeros((30, 4), np.float32),
    "five": np.array(5, np.int64),
    "minus": np.array([-3, -1], np.int64),
    "offsets": np.array([0, 10], np.int64),
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "row": np.array([1, -1], np.int64),
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "small": np.array(1e-3, np.float32),
    "depth": np.array(7, np.int64),
    "values": np.array([0, 1], np.float32),
}


def domains(
    nodes: Sequence[tuple[str, Sequence[str], str]], shape=(2, 2), kind: int = FLOAT, **more: object
) -> dict[str, Domain]:
    """Of a model of these nodes with one input `x`; the last node has the attributes `more`."""
    made = [helper.make_node(op, names, [out]) for op, names, out in nodes[:-1]]
    op, names, out = nodes[-1]
    made.append(helper.make_node(op, names, [out], **more))
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()],
    )
    return input_domains(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Add", ["x", "five"], "i"), ("Gather", ["table", "i"], "y")], (-5, 24)),
        ([("Sub", ["x", "five"], "i"), ("Gather", ["table", "i"], "y")], (5, 34)),
        ([("Sub", ["five", "x"], "i"), ("Gather", ["table", "i"], "y")], (-24, 5)),
        ([("Add", ["x", "offsets"], "i"), ("Gather", ["table", "i"], "y")], (0, 19)),
        ([("Mul", ["x", "five"], "i"), ("Gather", ["table", "i"], "y")], (0, 29 / 5)),
        ([("Neg", ["x"], "i"), ("Gather", ["table", "i"], "y")], (-29, 0)),
        ([("Reshape", ["x", "row"], "i"), ("GatherND", ["table", "i"], "y")], (0, 3)),
        ([("Concat", ["x", "x"], "i"), ("GatherElements", ["table", "i"], "y")], (0, 29)),
        ([("OneHot", ["x", "depth", "values"], "y")], (0, 6)),
        ([("Unsqueeze", ["x", "zero"], "i"), ("Div", ["five", "i"], "y")], (0.5, inf)),
        ([("Slice", ["x", "zero", "one"], "i"), ("Mod", ["five", "i"], "y")], (0.5, inf)),
    ],
)
def test_integers(nodes, expected) -> None:
    shape = (2, 2) if nodes[-1][0] != "GatherND" else (1, 2)
    found = domains(nodes, shape, INT64)["x"]
    assert (found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Sqrt", ["x"], "y")], (0, inf)),
        ([("Add", ["x", "two"], "a"), ("Sqrt", ["a"], "y")], (-2, inf)),
        ([("Cast", ["x"], "a"), ("Log", ["a"], "y")], (0.05, inf)),
        ([("Mul", ["x", "x"], "a"), ("Sqrt", ["a"], "y")], (-inf, inf)),
        ([("ReduceMean", ["x"], "a"), ("Sqrt", ["a"], "y")], (0, inf)),
        ([("Max", ["x", "small"], "a"), ("Sqrt", ["a"], "y")], (-inf, inf)),
        ([("Relu", ["x"], "a"), ("Sqrt", ["a"], "y")], (-inf, inf)),
        ([("Sub", ["two", "x"], "a"), ("Sqrt", ["a"], "y")], (-inf, 2)),
        ([("Pow", ["x", "half"], "y")], (0, inf)),
        ([("Pow", ["x", "two"], "y")], (-inf, inf)),
        ([("Pow", ["two", "x"], "y")], (0, 2)),
        ([("Acos", ["x"], "y")], (-1, 1)),
        ([("Reciprocal", ["x"], "y")], (0.5, inf)),
        ([("Conv", ["x", "table"], "a"), ("Sqrt", ["a"], "y")], (-inf, inf)),
    ],
)
def test_floats(nodes, expected) -> None:
    nodes = [n if n[0] != "Cast" else ("Identity", *n[1:]) for n in nodes]
    found = domains(nodes).get("x", Domain())
    assert (found.low, found.high) == expected


def test_a_cast_to_unsigned_integers_wants_what_they_hold() -> None:
    assert domains([("Cast", ["x"], "y")], to=UINT8) == {"x": Domain(0, 255)}


def test_the_table_may_be_computed() -> None:
    nodes = [
        ("Identity", ["table"], "t"), ("Sin", ["t"], "s"), ("Gather", ["s", "x"], "y"),
    ]  # fmt: skip
    assert domains(nodes, kind=INT64, axis=1) == {"x": Domain(0, 3)}


def test_nothing_is_scattered_twice_to_one_place() -> None:
    node = [("ScatterElements", ["table", "x", "table"], "y")]
    found = domains(node, (30, 4), INT64)
    assert found == {"x": Domain(0, 29, distinct_axis=0)}
    drawn = random_inputs({"x": ((30, 4), "int64")}, found, seed=0)["x"]
    assert all(len(set(column)) == 30 for column in drawn.T)
    assert domains([("ScatterND", ["table", "x", "table"], "y")], (2, 1), INT64) == {
        "x": Domain(0, 29, distinct_axis=0)
    }


def test_graphs_inside_nodes_restrict_what_they_read() -> None:
    branch = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", INT32, [3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [],
        [numpy_helper.from_array(CONSTANTS["table"], "table")],
    )
    assert input_domains(helper.make_model(graph)) == {"x": Domain(0, 29)}


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8"])
def test_integers_stay_inside(dtype: str) -> None:
    cases = [Domain(), Domain(0.5), Domain(-5, 3), Domain(high=-2), Domain(high=4), Domain(3, 3)]
    for domain in cases:
        values = random_inputs({"x": ((200,), dtype)}, {"x": domain}, seed=1)["x"]
        if domain.high >= 0 or np.dtype(dtype).kind == "i":
            assert (values >= domain.low).all() and (values <= domain.high).all()
        assert values.dtype == dtype


def test_floats_stay_inside() -> None:
    for domain in (Domain(0.5), Domain(-5, 3), Domain(high=-2)):
        values = random_inputs({"x": ((200,), "float32")}, {"x": domain}, seed=1)["x"]
        assert (values >= domain.low).all() and (values <= domain.high).all()


def test_inputs_that_contradict_are_still_drawn() -> None:
    nodes = [("Sqrt", ["x"], "a"), ("Neg", ["x"], "n"), ("Sqrt", ["n"], "y")]
    found = domains(nodes)
    assert random_inputs({"x": ((4,), "float32")}, found, seed=0)["x"].shape == (4,)


def test_a_model_without_shapes_restricts_what_it_can() -> None:
    model = onnx.ModelProto()
    model.graph.node.add(op_type="Gather", input=["nowhere", "x"], output=["y"])
    model.graph.input.add(name="x").type.tensor_type.elem_type = INT64
    assert input_domains(model) == {}
