"""Random inputs stay inside the tables that they index."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.inputs import Domain, random_inputs
from tinsmith.compiler.frontends.onnx.domains import input_domains


def test_values_have_the_shape_dtype_and_range_asked_for() -> None:
    signature = {
        "x": ((2, 3), "float32"),
        "h": ((4,), "float16"),
        "ids": ((500,), "int64"),
        "mask": ((500,), "int32"),
        "byte": ((5000,), "uint8"),
        "flag": ((500,), "bool"),
        "scalar": ((), "float32"),
    }
    values = random_inputs(signature, {"ids": Domain.below(7), "byte": Domain.below(1000)}, seed=3)
    assert {name: (v.shape, v.dtype.name) for name, v in values.items()} == signature
    assert set(values["ids"]) == set(range(7))
    assert set(values["mask"]) == {0, 1}
    assert values["byte"].max() == 255
    assert set(values["flag"]) == {True, False}


def test_the_seed_decides() -> None:
    signature = {"x": ((8,), "float32")}
    first, again, other = (random_inputs(signature, {}, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_refuses_strings() -> None:
    with pytest.raises(ModelError, match=r"input s.*str"):
        random_inputs({"s": ((1,), "str")}, {}, 0)


def test_bounds_come_from_the_smallest_table_behind_each_input() -> None:
    def table(name: str, rows: int) -> TensorProto:
        return numpy_helper.from_array(np.zeros((rows, 4), np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
            helper.make_node("Gather", ["words", "wide"], ["a"]),
            helper.make_node("Gather", ["styles", "ids"], ["b"]),
            helper.make_node("Gather", ["turned", "column"], ["c"], axis=1),
            helper.make_node("Add", ["free", "free"], ["d"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, [1, 5]),
            helper.make_tensor_value_info("column", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("free", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("image", TensorProto.UINT8, [1]),
        ],
        [],
        [table("words", 300), table("styles", 20), table("turned", 9)],
    )
    found = input_domains(helper.make_model(graph))
    assert found == {"ids": Domain(0, 19), "column": Domain(0, 3), "image": Domain(0, 255)}
