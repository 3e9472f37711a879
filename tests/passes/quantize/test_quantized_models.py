"""Models that ONNX Runtime has quantised compute in integers, and the same integers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from quantize_checks import dtypes

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import execute

from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.targets.registry import get_target

_SHAPE = (1, 3, 8, 8)
_SPEC = get_target("x86-64-v3")


def _float_model() -> onnx.ModelProto:
    """Conv, relu, max pool, depthwise conv, residual, concat, mean, gemm."""
    generator = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["c", "w2", "b2"], ["d"], pads=[1, 1, 1, 1], group=8),
        node("Add", ["c", "d"], ["e"]),
        node("Concat", ["e", "c"], ["f"], axis=1),
        node("GlobalAveragePool", ["f"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("Gemm", ["h", "w3", "b3"], ["scores"], transB=1),
    ]
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 1, 3, 3)]
    weights += [weight("b2", 8), weight("w3", 6, 16), weight("b3", 6)]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 6))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _images(count: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(_SHAPE).astype(np.float32) for _ in range(count)]


def _quantized_model(folder: Path, signed: bool, per_channel: bool) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    samples = iter([{"image": image} for image in _images(8, 1)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(samples, None)

    kind = quantization.QuantType
    onnx.save(_float_model(), folder / "float.onnx")
    quantization.quantize_static(
        folder / "float.onnx",
        folder / "quantized.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=kind.QInt8 if signed else kind.QUInt8,
        weight_type=kind.QInt8,
    )
    return folder / "quantized.onnx"


def _lowered(path: Path) -> tvm.IRModule:
    pipeline = lowering(_SPEC).until("store_exact_codes")
    return pipeline.run(import_onnx(path).module).module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("signed", "per_channel"), [(False, True), (True, True), (False, False)])
def test_agrees_with_onnxruntime(tmp_path: Path, signed: bool, per_channel: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = _quantized_model(tmp_path, signed, per_channel)
    module = _lowered(path)
    kinds = [f"{name.rstrip('0123456789')} {dtype}" for name, dtype in dtypes(module).items()]
    assert [k for k in kinds if k.startswith(("conv", "mat"))] == [
        "conv2d int32",
        "conv2d int32",
        "matmul int32",
    ]
    assert "max_pool2d uint8" in kinds and "concat uint8" in kinds
    options = runtime.SessionOptions()
    # Without VNNI it multiplies in 16 bits, which saturate, unless asked for exact products.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(str(path), options)
    scores = next(node for node in onnx.load(path).graph.node[::-1] if node.op_type[0] == "D")
    initializers = {i.name: i for i in onnx.load(path).graph.initializer}
    step = float(numpy_helper.to_array(initializers[scores.input[1]]))
    kernels = lowering(_SPEC).since("store_exact_codes").until("schedule")
    module = kernels.run(module).module
    for image in _images(5, 2):
        (expected,) = session.run(None, {"image": image})
        (actual,) = execute(module, [image])
        assert np.abs(actual - expected).max() <= 1.01 * step
