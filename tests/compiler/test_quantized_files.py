"""Whole modules of files that are already quantised, beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tinsmith
from tinsmith.compiler.evaluate.oracle import ONNX_RUNTIME, open_runner

_RANDOM = np.random.default_rng(2)
_QUICK = {"runner": False, "static_library": False}
# Arithmetics of kernels that multiply bytes.
_INTEGER = {"vnni", "avx2-int8"}


def _transformer(folder: Path, tokens: int = 12, width: int = 32, heads: int = 2) -> Path:
    """One layer of attention and feed-forward on float embeddings, with random weights."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def constant(array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        return weights[-1].name

    def add(operator: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def linear(x: str, inputs: int, outputs: int) -> str:
        matrix = _RANDOM.standard_normal((inputs, outputs)) / np.sqrt(inputs)
        bias = constant(_RANDOM.standard_normal(outputs).astype(np.float32))
        return add("Add", add("MatMul", x, constant(matrix.astype(np.float32))), bias)

    def split(x: str, order: list[int]) -> str:
        shape = constant(np.array([1, tokens, heads, width // heads]))
        return add("Transpose", add("Reshape", x, shape), perm=order)

    def normalized(x: str) -> str:
        scale = constant(np.ones(width, np.float32))
        return add("LayerNormalization", x, scale, constant(np.zeros(width, np.float32)))

    query = split(linear("x", width, width), [0, 2, 1, 3])
    key = split(linear("x", width, width), [0, 2, 3, 1])
    value = split(linear("x", width, width), [0, 2, 1, 3])
    scores = add("Softmax", add("MatMul", query, key), axis=-1)
    mixed = add("Transpose", add("MatMul", scores, value), perm=[0, 2, 1, 3])
    joined = add("Reshape", mixed, constant(np.array([1, tokens, width])))
    hidden = normalized(add("Add", "x", linear(joined, width, width)))
    inner = add("Relu", linear(hidden, width, 2 * width))
    result = normalized(add("Add", hidden, linear(inner, 2 * width, width)))
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, tokens, width))],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, (1, tokens, width))],
        weights,
    )
    path = folder / "transformer.onnx"
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("weight", "per_channel"), [("QInt8", True), ("QUInt8", False)])
def test_dynamically_quantised_transformer(tmp_path: Path, weight: str, per_channel: bool) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = tmp_path / "quantized.onnx"
    kind = getattr(quantization.QuantType, weight)
    quantization.quantize_dynamic(
        _transformer(tmp_path), path, weight_type=kind, per_channel=per_channel
    )
    reference = open_runner(ONNX_RUNTIME, path.read_bytes(), threads=1)
    data = _RANDOM.standard_normal((1, 12, 32)).astype(np.float32)
    with tinsmith.compile(path, **_QUICK) as module:
        (actual,) = module.run([data])
        kernels = module.manifest.kernels
    # Six layers; the two products of attention have no constant operand and stay float.
    products = [kernel for kernel in kernels if kernel.template.startswith("matmul")]
    integer = [kernel for kernel in products if kernel.arithmetic != "float32"]
    assert sum(kernel.calls for kernel in integer) == 6
    assert {kernel.arithmetic for kernel in integer} <= _INTEGER
    assert not any(kernel.template in ("unscheduled", "generic") for kernel in kernels)
    (expected,) = reference({"x": data}).values()
    assert np.abs(actual - expected).max() <= 5e-3 * np.ptp(expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_codes_in_and_codes_out(dtype: str) -> None:
    pytest.importorskip("onnxruntime")
    low = np.iinfo(dtype).min
    offset = np.array(low + 120, dtype)
    weights = _RANDOM.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
    stored = {"s": np.float32(0.03), "z": offset, "w": weights, "ws": np.float32(0.01)}
    stored |= {"wz": np.int8(0), "ys": np.float32(0.2), "yz": np.array(low + 128, dtype)}
    nodes = [
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "ys", "yz"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "codes",
        [helper.make_tensor_value_info("x", element, (1, 3, 9, 7))],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = _RANDOM.integers(low, low + 256, (1, 3, 9, 7)).astype(dtype)
    reference = open_runner(ONNX_RUNTIME, proto.SerializeToString(), threads=1)
    (expected,) = reference({"x": data}).values()
    with tinsmith.compile(proto, **_QUICK) as module:
        (actual,) = module.run([data])
        arithmetics = {kernel.arithmetic for kernel in module.manifest.kernels}
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert np.abs(actual.astype(int) - expected).max() <= 1
    assert arithmetics & _INTEGER and "float32" not in arithmetics
