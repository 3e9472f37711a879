"""Models in float16 and float64: how near results are to the real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from scipy import special

import tinsmith
from tinsmith.compiler.evaluate.peers import OnnxRuntime, installed

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    """Normal, of a size that keeps the variance of what they are multiplied with."""
    return RANDOM.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(" "), outputs.split(" "), **attributes)


def build(
    nodes: Sequence[NodeProto],
    shape: Sequence[int],
    outputs: str,
    constants: dict[str, np.ndarray],
    dtype: int,
) -> ModelProto:
    """A model with one input `x` and all its floats (but those named `scales`) in `dtype`."""
    numpy = helper.tensor_dtype_to_np_dtype(dtype)
    stored = [
        numpy_helper.from_array(
            array if array.dtype.kind != "f" or name == "scales" else array.astype(numpy), name
        )
        for name, array in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "float_widths",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs.split(" ")],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def convolutions(dtype: int) -> ModelProto:
    """Convolutions of all kinds, pools, norms and resizing."""
    nodes = [
        node("Conv", "x dense bias", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b depthwise", "c", pads=[1] * 4, group=16),
        node("BatchNormalization", "c gamma beta mean variance", "d"),
        node("Conv", "d grouped", "e", group=4),
        node("ConvTranspose", "e transposed", "f", strides=[2, 2]),
        node("MaxPool", "f", "g", kernel_shape=[3, 3], strides=[2, 2]),
        node("InstanceNormalization", "g gamma beta", "h"),
        node("Sigmoid", "h", "i"),
        node("Mul", "h i", "j"),
        node("Resize", "j  scales", "resized", mode="linear"),
        node("AveragePool", "resized", "pooled", kernel_shape=[2, 2]),
        node("Reshape", "pooled lines", "k"),
        node("Conv", "k line", "along", pads=[1, 1]),
    ]
    constants = {
        "dense": weights(16, 8, 3, 3),
        "bias": weights(16),
        "depthwise": weights(16, 1, 3, 3),
        "grouped": weights(24, 4, 1, 1),
        "transposed": weights(24, 16, 2, 2),
        "gamma": 1 + weights(16),
        "beta": weights(16),
        "mean": weights(16),
        "variance": 1 + np.abs(weights(16)),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "lines": np.array([1, 16, -1]),
        "line": weights(8, 16, 3),
    }
    return build(nodes, [1, 8, 10, 10], "resized pooled along", constants, dtype)


def transformer(dtype: int) -> ModelProto:
    """One block of a transformer, a recurrent layer, and reductions."""
    nodes = [
        node("LayerNormalization", "x gamma beta", "n"),
        *(node("MatMul", f"n {w}", w.upper()) for w in "qkv"),
        node("Transpose", "K", "kt", perm=[0, 2, 1]),
        node("MatMul", "Q kt", "scores"),
        node("Softmax", "scores", "attention"),
        node("MatMul", "attention V", "mixed"),
        node("Add", "x mixed", "residual"),
        node("MatMul", "residual up", "u"),
        node("Tanh", "u", "t"),
        node("MatMul", "t down", "dn"),
        node("Add", "residual dn", "block"),
        node("Reshape", "block rows", "r"),
        node("Gemm", "r head beta", "logits", transB=1),
        node("LSTM", "x gates states", "lstm", hidden_size=16),
        node("GRU", "x three recurrent", "gru", hidden_size=16),
        node("ReduceMean", "block", "mean", keepdims=0),
        node("ReduceL2", "block", "norm", keepdims=0),
    ]
    constants = {
        "gamma": 1 + weights(32),
        "beta": weights(32),
        **{w: weights(32, 32) for w in "qkv"},
        "up": weights(32, 96),
        "down": weights(96, 32),
        "rows": np.array([-1, 32]),
        "head": weights(32, 32),
        "gates": weights(1, 64, 32),
        "states": weights(1, 64, 16),
        "three": weights(1, 48, 32),
        "recurrent": weights(1, 48, 16),
    }
    outputs = "attention block logits lstm gru mean norm"
    return build(nodes, [9, 1, 32], outputs, constants, dtype)


def in_float64(model: ModelProto) -> ModelProto:
    """The same numbers and operators, all in float64."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide


@pytest.mark.skipif(not installed(OnnxRuntime), reason="needs ONNX Runtime")
@pytest.mark.parametrize("make", [convolutions, transformer])
def test_float16_is_as_near_to_the_real_numbers_as_onnx_runtime(make: Any) -> None:
    model = make(TensorProto.FLOAT16)
    module = tinsmith.compile(model, runner=False, static_library=False)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    ours = module(x)
    theirs = OnnxRuntime(model.SerializeToString(), 1, {}).run({"x": x})
    evaluator = onnx.reference.ReferenceEvaluator(in_float64(model))
    exact = dict(zip(ours, evaluator.run(list(ours), {"x": x.astype(np.float64)}), strict=True))
    for name, result in ours.items():
        assert result.dtype == np.float16

        def deviation(values: np.ndarray, name: str = name) -> float:
            return float(np.abs(values.astype(np.float64) - exact[name]).max())

        # The last bit of float16 may fall either way where a sum lies near a tie.
        assert deviation(result) <= 1.02 * deviation(theirs[name]) + 1e-7, name


def doubles() -> ModelProto:
    """What differs in float64: products, norms that TVM lacks, elementary functions."""
    nodes = [
        node("Conv", "x dense bias", "c", pads=[1] * 4),
        node("ConvTranspose", "c transposed", "t", strides=[2, 2]),
        node("MatMul", "t matrix", "m"),
        node("MatMul", "m m", "products"),
        node("Tanh", "m", "bounded"),
        node("Erf", "bounded", "erf"),
        node("Sinh", "bounded", "sinh"),
        node("Cosh", "bounded", "cosh"),
        node("GroupNormalization", "bounded gamma beta", "groups", num_groups=2),
        node("LayerNormalization", "bounded rows", "layers"),
        node("LRN", "bounded", "neighbours", size=3, alpha=0.5),
        node("Softmax", "m", "softmax"),
    ]
    constants = {
        "dense": weights(12, 8, 3, 3),
        "bias": weights(12),
        "transposed": weights(12, 6, 2, 2),
        "matrix": weights(8, 8),
        "gamma": 1 + weights(2),
        "beta": weights(2),
        "rows": 1 + weights(8),
    }
    outputs = "bounded products erf sinh cosh groups layers neighbours softmax"
    return build(nodes, [1, 8, 4, 4], outputs, constants, TensorProto.DOUBLE)


def test_float64_is_computed_in_float64() -> None:
    model = doubles()
    module = tinsmith.compile(model, runner=False, static_library=False, golden=False)
    x = np.random.default_rng(1).standard_normal((1, 8, 4, 4))
    ours = module(x)
    names = [name for name in ours if name not in ("erf", "neighbours")]
    evaluator = onnx.reference.ReferenceEvaluator(model)
    expected = dict(zip(names, evaluator.run(names, {"x": x}), strict=True))
    # The evaluator's own are in float32, and wrong.
    bounded = ours["bounded"]
    expected["erf"] = special.erf(bounded)
    squares = np.pad(bounded**2, [(0, 0), (1, 1), (0, 0), (0, 0)])
    sums = sum(squares[:, first : first + 6] for first in range(3))
    expected["neighbours"] = bounded / (1 + 0.5 / 3 * sums) ** 0.75
    for name, result in ours.items():
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected[name], rtol=1e-11, atol=1e-12, err_msg=name)


def test_bfloat16_travels_as_bits_and_is_computed_in_float32() -> None:
    nodes = [node("MatMul", "x matrix", "m"), node("Softmax", "m", "y")]
    model = build(nodes, [3, 64], "y", {"matrix": weights(64, 40)}, TensorProto.BFLOAT16)
    module = tinsmith.compile(model, runner=False, static_library=False)
    half = np.dtype(ml_dtypes.bfloat16)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(half)
    (y,) = module(x.view(np.uint16)).values()
    matrix = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    expected = special.softmax(x.astype(np.float64) @ matrix, axis=-1)
    # Half a unit in the last of eight places, and a little for the sums.
    np.testing.assert_allclose(y.view(half).astype(np.float64), expected, rtol=2**-8 * 1.01)
