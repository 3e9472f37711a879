"""Weights that a file stores in few bits stay small in the module, and give the same results."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tinsmith

_RANDOM = np.random.default_rng(0)
_ROWS, _COLUMNS, _WORDS = 128, 96, 300


def _model() -> tuple[onnx.ModelProto, int]:
    """Products and tables as exporters store them, and the bytes of their codes."""
    codes = _RANDOM.integers(-127, 128, (_ROWS, _COLUMNS)).astype(np.int8)
    table = _RANDOM.integers(-127, 128, (_WORDS, _COLUMNS)).astype(np.int8)
    kernel = _RANDOM.integers(-127, 128, (64, _ROWS, 1, 1)).astype(np.int8)
    nibbles = _RANDOM.integers(0, 16, (_ROWS, _COLUMNS)).astype(ml_dtypes.uint4)
    scales = _RANDOM.uniform(1e-3, 1e-2, _COLUMNS).astype(np.float32)
    constants = {
        "codes": codes,
        "transposed": np.ascontiguousarray(codes.T[::-1]),
        "table": table,
        "kernel": kernel,
        "nibbles": nibbles,
        "one": np.float32(0.0123),
        "scales": scales,
        "points": _RANDOM.integers(-20, 20, _COLUMNS).astype(np.int8),
        "kernel_scales": _RANDOM.uniform(1e-3, 1e-2, 64).astype(np.float32),
        "block_scales": _RANDOM.uniform(1e-3, 1e-2, (4, _COLUMNS)).astype(np.float32),
        "block_points": _RANDOM.integers(0, 16, (4, _COLUMNS)).astype(ml_dtypes.uint4),
        "image": np.array([1, _ROWS, 1, 1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["codes"], ["c0"], to=TensorProto.FLOAT),
        node("Mul", ["c0", "one"], ["w0"]),
        node("MatMul", ["x", "w0"], ["cast_mul"]),
        node("DequantizeLinear", ["transposed", "scales", "points"], ["w1"], axis=0),
        node("Transpose", ["w1"], ["t1"], perm=[1, 0]),
        node("MatMul", ["x", "t1"], ["dequantized"]),
        node("Cast", ["transposed"], ["c2"], to=TensorProto.FLOAT),
        node("Gemm", ["x", "c2"], ["m2"], transB=1),
        node("Mul", ["m2", "scales"], ["scaled_after"]),
        node("DequantizeLinear", ["nibbles", "block_scales", "block_points"], ["w3"],
             axis=0, block_size=32),
        node("MatMul", ["x", "w3"], ["blocks"]),
        node("DequantizeLinear", ["kernel", "kernel_scales"], ["w4"], axis=0),
        node("Reshape", ["x", "image"], ["pixel"]),
        node("Conv", ["pixel", "w4"], ["convolved"]),
        node("DequantizeLinear", ["table", "scales"], ["w5"], axis=1),
        node("Gather", ["w5", "i"], ["embedded"]),
        node("Gather", ["table", "i"], ["g6"]),
        node("Cast", ["g6"], ["c6"], to=TensorProto.FLOAT),
        node("Mul", ["c6", "scales"], ["gathered_first"]),
    ]  # fmt: skip
    results = (
        "cast_mul", "dequantized", "scaled_after", "blocks", "convolved", "embedded",
        "gathered_first",
    )  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _ROWS]),
            helper.make_tensor_value_info("i", TensorProto.INT64, [5]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    # The table is read by two outputs, and stored once.
    return model, 3 * codes.nbytes + table.nbytes + kernel.nbytes + nibbles.size // 2


def test_few_bits_stay_few() -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, code_bytes = _model()
    inputs = {
        "x": _RANDOM.standard_normal((1, _ROWS)).astype(np.float32),
        "i": np.array([0, 7, 299, 7, 150]),
    }
    with tinsmith.compile(model, runner=False, static_library=False) as module:
        results = module(inputs)
        assert module.manifest.form == "self-contained"
        # The rest are scales, offsets, and what vectors are filled up with.
        assert module.manifest.weights_bytes < 1.35 * code_bytes
        assert any("grids of few bits" in note for note in module.manifest.notes)
    # Optimised, it quantises the data of products by weights in blocks.
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    for name, expected in zip(names, session.run(None, inputs), strict=True):
        assert np.abs(results[name] - expected).max() <= 1e-5 * np.ptp(expected), name
    np.testing.assert_array_equal(results["embedded"], results["gathered_first"])
