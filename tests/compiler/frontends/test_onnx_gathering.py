"""Operators that read and write by index: negative, partial, misfitting and foreign indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tinsmith
from tests.compiler.frontends.small_models import model, random, run, value
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx

X = random((4, 5, 6))


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_indices_may_cover_a_part_of_the_other_axes(reduction: str) -> None:
    places = np.array([[[0, -1]], [[3, 2]]])
    updates = random((2, 1, 2), 1)
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=2, reduction=reduction)
    infos = [value("x", X.shape), value("i", [2, 1, 2], TensorProto.INT64), value("u", [2, 1, 2])]
    (result,) = run(import_onnx(model([node], infos, ["y"])), X, places, updates)
    expected = X.copy()
    combine = {"none": lambda a, b: b, "add": np.add, "max": np.maximum}[reduction]
    for i, j, k in np.ndindex(2, 1, 2):
        at = (i, j, places[i, j, k])
        expected[at] = combine(expected[at], updates[i, j, k])
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_no_index_leaves_memory(tmp_path: Path) -> None:
    """Whatever comes in as an index, the module computes something of the right shape."""
    node = helper.make_node
    nodes = [
        node("Gather", ["x", "i"], ["a"], axis=1),
        node("GatherElements", ["row", "i"], ["b"]),
        node("ScatterElements", ["row", "i", "row"], ["c"]),
        node("Unsqueeze", ["i", "axis"], ["column"]),
        node("GatherND", ["x", "column"], ["d"]),
        node("ScatterND", ["x", "column", "planes"], ["e"]),
        node("OneHot", ["i", "depth", "values"], ["f"]),
        node("RoiAlign", ["images", "boxes", "i"], ["g"], output_height=2, output_width=2),
        node("LSTM", ["steps", "W", "R", "", "length"], ["h"], hidden_size=2, direction="reverse"),
        node("ReverseSequence", ["rows", "lengths"], ["k"], time_axis=0, batch_axis=1),
    ]
    inputs = {"x": X, "row": random((6,)), "planes": random((6, 5, 6))}
    inputs |= {"images": random((1, 1, 4, 4)), "i": np.zeros(6, np.int64)}
    inputs |= {"length": np.zeros(1, np.int32), "lengths": np.zeros(1, np.int64)}
    constants = {
        "axis": np.array([1]), "depth": np.array(3), "values": np.array([0, 1], np.float32),
        "boxes": np.abs(random((6, 4))), "steps": random((3, 1, 2)), "W": random((1, 8, 2)),
        "R": random((1, 8, 2)), "rows": random((3, 1)),
    }  # fmt: skip
    infos = [
        value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in inputs.items()
    ]
    proto = model(nodes, infos, list("abcdefghk"), constants, opset=16)
    compiled = tinsmith.compile_to(
        proto, tmp_path / "m", golden=False, runner=False, static_library=False
    )
    limits = np.iinfo(np.int64)
    foreign = [limits.max, limits.min, 2**31, -(2**31) - 1, 2**32 + 1, 7]
    inputs |= {"i": np.array(foreign), "length": np.array([2**30], np.int32)}
    with tinsmith.load(compiled.path, threads=1) as module:
        for lengths in (limits.max, limits.min, 4):
            results = module(**(inputs | {"lengths": np.array([lengths])}))
            inside = np.array([4, 0, 4, 0, 4, 4])
            np.testing.assert_array_equal(results["a"], X[:, inside])
            assert results["e"].shape == X.shape


@pytest.mark.parametrize(
    ("node", "shapes", "message"),
    [
        (
            helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1),
            {"i": [5, 2, 6]},
            "do not fit",
        ),
        (helper.make_node("GatherND", ["x", "i"], ["y"]), {"i": [2, 4]}, "do not fit"),
        (
            helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=1),
            {"i": [3, 2]},
            "do not fit",
        ),
        (
            helper.make_node("ScatterElements", ["x", "i", "u"], ["y"]),
            {"i": [2, 5, 6], "u": [1, 5, 6]},
            "another shape than the indices",
        ),
        (
            helper.make_node("ScatterND", ["x", "i", "u"], ["y"]),
            {"i": [2, 1], "u": [2, 5, 5]},
            "do not fit",
        ),
    ],
)
def test_indices_that_do_not_fit_are_refused(
    node: onnx.NodeProto, shapes: dict[str, list[int]], message: str
) -> None:
    infos = [value("x", X.shape)]
    infos += [
        value(name, shape, TensorProto.INT64 if name == "i" else TensorProto.FLOAT)
        for name, shape in shapes.items()
    ]
    with pytest.raises(ModelError, match=message):
        import_onnx(model([node], infos, ["y"]))
