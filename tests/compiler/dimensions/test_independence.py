"""Which graphs compute each entry of a batch from that entry alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinsmith.compiler.dimensions.batching import DependentImagesError, batched
from tinsmith.compiler.dimensions.images import Images, candidates, first_images
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.targets.registry import get_target


def graph_images(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, np.ndarray] | None = None,
    axis: int = 0,
) -> tuple[Images | None, ...]:
    """The images of the results `y` of a model of one input `x`, whose batch of 8 is `axis`."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = lowering(get_target("x86-64-v3")).run(import_onnx(model).module)
    return batched(report.fused, report.module, [Images.of_axis(shape, axis, 8)], 8).outputs


def test_rows_of_products_are_independent() -> None:
    weights = {"w": np.ones((4, 5), np.float32)}
    found = graph_images([helper.make_node("MatMul", ["x", "w"], ["y"])], (8, 6, 4), weights)
    assert found == (Images(1, 8, 30),)


def test_transposing_moves_the_images() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2])
    assert graph_images([node], (8, 6, 4)) == (Images(6, 8, 4),)
    assert graph_images([node], (6, 8, 4), axis=1) == (Images(1, 8, 24),)


def test_reshaping_keeps_them() -> None:
    shape = {"shape": np.array([16, 12], np.int64)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["y"]),
    ]
    assert graph_images(nodes, (8, 6, 4), shape) == (Images(1, 8, 24),)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Softmax", ["x"], ["y"], axis=0),
        helper.make_node("ReduceMean", ["x"], ["y"], axes=[0]),
        helper.make_node("CumSum", ["x", "axis"], ["y"]),
        helper.make_node("Slice", ["x", "last", "first", "axis", "back"], ["y"]),
        helper.make_node("MatMul", ["square", "x"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_what_mixes_entries_is_refused(node: onnx.NodeProto) -> None:
    constants = {
        "axis": np.array(0, np.int64) if node.op_type == "CumSum" else np.array([0], np.int64),
        "last": np.array([-1], np.int64),
        "first": np.array([-9], np.int64),
        "back": np.array([-1], np.int64),
        "square": np.ones((8, 8), np.float32),
    }
    used = {name: array for name, array in constants.items() if name in node.input}
    with pytest.raises(DependentImagesError):
        graph_images([node], (8, 8), used)


def test_a_part_of_an_array_is_its_first_images() -> None:
    array = np.arange(48).reshape(2, 8, 3)
    np.testing.assert_array_equal(first_images(array, Images(2, 8, 3), 5), array[:, :5])
    rows = np.arange(48).reshape(16, 3)
    np.testing.assert_array_equal(first_images(rows, Images(1, 8, 6), 5), rows[:10])
    assert first_images(array, None, 5) is array


def test_candidates_are_axes_then_those_of_the_sources() -> None:
    assert candidates((3, 4, 8), 4) == [Images(3, 4, 8), Images(12, 4, 2)]
    assert candidates((24, 5), 4, [Images(3, 4, 7)]) == [Images(1, 4, 30), Images(3, 4, 10)]
