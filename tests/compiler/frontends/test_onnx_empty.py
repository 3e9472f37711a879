"""Tensors without elements go in, come out and lie on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

import tinsmith
from tests.compiler.frontends.small_models import model, random, value


def test_whole_modules_compute_with_empty_tensors(tmp_path: Path) -> None:
    node = helper.make_node
    x, bias = random((2, 4)), random((5,))
    cases = {
        "rows": (node("MatMul", ["e", "w"], ["rows"]), np.zeros((0, 3))),
        "inner": (node("MatMul", ["k", "l"], ["inner"]), np.zeros((3, 5))),
        "biased": (node("Gemm", ["k", "l", "bias"], ["biased"], beta=2.0),
                   np.broadcast_to(2 * bias, (3, 5))),
        "joined": (node("Concat", ["e", "x", "e"], ["joined"], axis=0), x),
        "both": (node("Concat", ["e", "e"], ["both"], axis=0), np.zeros((0, 4))),
        "sum": (node("ReduceSum", ["e"], ["sum"], keepdims=0), np.zeros(())),
        "plus": (node("Add", ["e", "row"], ["plus"]), np.zeros((0, 4))),
        "image": (node("Conv", ["images", "kernel"], ["image"]), np.zeros((0, 2, 3, 3))),
        "cut": (node("Slice", ["x", "zero", "zero"], ["cut"]), np.zeros((0, 4))),
        "spread": (node("Expand", ["row", "none"], ["spread"]), np.zeros((0, 4))),
        "tiled": (node("Tile", ["x", "none"], ["tiled"]), np.zeros((0, 16))),
        "kept": (node("ScatterND", ["x", "nowhere", "e"], ["kept"]), x),
        "picked": (node("Gather", ["x", "nothing"], ["picked"], axis=1), np.zeros((2, 0))),
        "soft": (node("Softmax", ["e"], ["soft"]), np.zeros((0, 4))),
    }  # fmt: skip
    inputs = {"e": (0, 4), "x": (2, 4), "k": (3, 0), "l": (0, 5), "images": (0, 3, 5, 5)}
    constants = {
        "w": random((4, 3)),
        "bias": bias,
        "row": random((1, 4)),
        "kernel": random((2, 3, 3, 3)),
        "zero": np.array([0]),
        "none": np.array([0, 4]),
        "nowhere": np.zeros((0, 1), np.int64),
        "nothing": np.zeros(0, np.int64),
    }
    infos = [value(name, shape, TensorProto.FLOAT) for name, shape in inputs.items()]
    proto = model([case[0] for case in cases.values()], infos, list(cases), constants, opset=13)
    compiled = tinsmith.compile_to(
        proto, tmp_path / "m", golden=False, runner=False, static_library=False
    )
    with tinsmith.load(compiled.path, threads=1) as module:
        given = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
        results = module(**(given | {"x": x}))
    for name, (_, expected) in cases.items():
        assert results[name].shape == expected.shape, name
        np.testing.assert_allclose(results[name], expected, rtol=1e-6, err_msg=name)


def test_lists_in_constants_of_old_models_are_read() -> None:
    """The optimizer folds Shape into a Constant with `value_ints`, also where that is unknown."""
    from tests.compiler.frontends.small_models import run
    from tinsmith.compiler.frontends.onnx.model import import_onnx

    nodes = [helper.make_node("Shape", ["x"], ["y"])]
    (shape,) = run(import_onnx(model(nodes, [value("x", [2, 4])], ["y"], opset=11)), random((2, 4)))
    np.testing.assert_array_equal(shape, [2, 4])
