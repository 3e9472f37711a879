"""Pooling with positions, running sums along an axis, sizes rounded up, odd paddings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import model, original, random, run, value
from tinsmith.compiler.frontends.onnx.model import import_onnx

_SHAPES = {1: (2, 2, 11), 2: (2, 3, 7, 8), 3: (1, 2, 5, 6, 5)}


def _agrees(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], **constants) -> None:
    """One module of all `nodes` computes what ONNX Runtime does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    infos = [
        value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in inputs.items()
    ]
    outputs = [name for node in nodes for name in node.output]
    proto = model(nodes, infos, outputs, constants)
    for output in proto.graph.output:
        output.ClearField("type")
    typed = onnx.shape_inference.infer_shapes(proto)
    del proto.graph.output[:]
    proto.graph.output.extend(typed.graph.output)
    imported = import_onnx(proto)
    session = onnxruntime.InferenceSession(
        original(imported).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, inputs)
    for name, ours, theirs in zip(outputs, run(imported, *inputs.values()), expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def test_largest_elements_with_their_positions() -> None:
    attributes: list[tuple[int, dict]] = [
        (1, {"kernel_shape": [2], "strides": [3], "dilations": [2], "pads": [0, 1]}),
        (2, {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, "dilations": [1, 2],
             "pads": [1, 0, 0, 1]}),
        (2, {"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
        (2, {"kernel_shape": [3, 3], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
        (3, {"kernel_shape": [2, 2, 3], "strides": [2, 1, 2], "pads": [1, 0, 1, 0, 1, 1]}),
    ]  # fmt: skip
    nodes = [
        helper.make_node(
            "MaxPool", [f"x{rank}"], [f"v{i}{order}", f"p{i}{order}"], storage_order=order, **given
        )
        for i, (rank, given) in enumerate(attributes)
        for order in (i % 2,)
    ]
    nodes += [
        helper.make_node("MaxPool", ["x2"], ["alone"], **attributes[3][1]),
        helper.make_node("LpPool", ["x2"], ["norm"], kernel_shape=[2, 2], strides=[3, 3]),
        helper.make_node("MaxPool", ["x2"], ["few", "at"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["few", "at", "size"], ["back"], kernel_shape=[2, 2],
                         strides=[2, 2]),
    ]  # fmt: skip
    inputs = {f"x{rank}": random(shape) for rank, shape in _SHAPES.items()}
    _agrees(nodes, inputs, size=np.array([2, 3, 7, 8]))


def test_positions_outside_the_unpooled_tensor_are_dropped() -> None:
    node = helper.make_node("MaxUnpool", ["x", "at"], ["y"], kernel_shape=[1, 1])
    infos = [value("x", [1, 1, 2, 2]), value("at", [1, 1, 2, 2], TensorProto.INT64)]
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)
    at = np.array([3, -1, 4_000_000_000_000, 0]).reshape(1, 1, 2, 2)
    (result,) = run(import_onnx(model([node], infos, ["y"])), x, at)
    np.testing.assert_array_equal(result.reshape(-1), [4, 0, 0, 1])


def test_running_sums_along_an_axis_of_the_moment() -> None:
    x = random((3, 4, 2))
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["plain"]),
        helper.make_node("CumSum", ["x", "axis"], ["before"], exclusive=1, reverse=1),
        helper.make_node("CumSum", ["x", "last"], ["fixed"], reverse=1),
    ]
    infos = [value("x", [3, 4, 2]), value("axis", [], TensorProto.INT32)]
    proto = model(nodes, infos, ["plain", "before", "fixed"], {"last": np.array([-1])})
    imported = import_onnx(proto)
    for axis in (-3, 1):
        plain, before, fixed = run(imported, x, np.array(axis, np.int32))
        np.testing.assert_allclose(plain, x.cumsum(axis), rtol=1e-5)
        behind = np.flip(np.flip(x, axis).cumsum(axis), axis) - x
        np.testing.assert_allclose(before, behind, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fixed, x[..., ::-1].cumsum(-1)[..., ::-1], rtol=1e-5)


def test_odd_paddings_of_transposed_convolutions() -> None:
    cases: list[tuple[int, list[int], dict]] = [
        (1, [4], {"strides": [3], "output_shape": [31]}),
        (2, [3, 3], {"strides": [3, 2], "output_shape": [20, 15]}),
        (2, [3, 3], {"strides": [3, 2], "output_shape": [22, 16], "dilations": [2, 2]}),
        (3, [3, 3, 3], {"strides": [2, 2, 2], "output_shape": [10, 12, 10]}),
    ]
    nodes, constants = [], {}
    for i, (rank, kernel, given) in enumerate(cases):
        channels = _SHAPES[rank][1]
        constants[f"w{i}"] = random((channels, 2, *kernel))
        for how in ("NOTSET", "SAME_UPPER")[: rank % 2 + 1]:
            nodes.append(
                helper.make_node(
                    "ConvTranspose", [f"x{rank}", f"w{i}"], [f"y{i}{how}"], auto_pad=how, **given
                )
            )
    inputs = {f"x{rank}": random(shape) for rank, shape in _SHAPES.items()}
    _agrees(nodes, inputs, **constants)


def test_integers_are_resampled_by_fractions() -> None:
    generator = np.random.default_rng(0)
    bytes_ = generator.integers(0, 256, (1, 2, 5, 6)).astype(np.uint8)
    words = generator.integers(-999, 999, (1, 2, 5, 6)).astype(np.int32)
    nodes = []
    for name in ("bytes", "words"):
        for mode in ("nearest", "linear"):
            for coordinates in ("half_pixel", "asymmetric"):
                nodes.append(
                    helper.make_node(
                        "Resize",
                        [name, "", "scales"],
                        [f"{name}-{mode}-{coordinates}"],
                        mode=mode,
                        coordinate_transformation_mode=coordinates,
                    )
                )
    nodes.append(
        helper.make_node("Resize", ["bytes", "", "scales"], ["smooth"], mode="linear", antialias=1)
    )
    scales = np.array([1, 1, 2.0, 1.5], np.float32)
    _agrees(nodes, {"bytes": bytes_, "words": words}, scales=scales)


def test_what_keeps_its_size_is_not_resampled() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    scales = np.array([1, 1, 1, 1.02191], np.float32)
    _agrees([node], {"x": random((1, 1, 3, 38))}, scales=scales)


def test_truth_values_are_compared() -> None:
    a, b = np.array([[True], [False]]), np.array([True, False, True])
    infos = [value("a", [2, 1], TensorProto.BOOL), value("b", [3], TensorProto.BOOL)]
    node = helper.make_node("Equal", ["a", "b"], ["y"])
    (result,) = run(import_onnx(model([node], infos, ["y"])), a, b)
    np.testing.assert_array_equal(result, a == b)
