"""Quantised models, and operators of ONNX Runtime's own."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from tests.fuzz.building import FLOAT, array, model, node, random, value


def quantize_dequantize() -> ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        node("Conv", ["xd", "wd"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "xs", "xz"], ["rq"]),
        node("DequantizeLinear", ["rq", "xs", "xz"], ["y"]),
        node("DynamicQuantizeLinear", ["y"], ["dq", "ds", "dz"]),
        node("Cast", ["dq"], ["z"], to=FLOAT),
    ]
    stored = [
        array("xs", 0.05, np.float32), array("xz", 128, np.uint8),
        array("wq", np.arange(4 * 27).reshape(4, 3, 3, 3) % 17 - 8, np.int8),
        array("ws", [0.02] * 4, np.float32), array("wz", [0] * 4, np.int8),
    ]  # fmt: skip
    outputs = [value("y", None), value("z", None)]
    return model(nodes, [value("x", [1, 3, 6, 6])], outputs, stored)


def quantized_linear() -> ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("QLinearConv", ["xq", "xs", "xz", "wq", "ws", "wz", "ys", "yz", "b"], ["c"],
              kernel_shape=[3, 3], pads=[1] * 4),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("QLinearMatMul", ["f", "ys", "yz", "mq", "ms", "mz", "ys", "yz"], ["m"]),
        node("DequantizeLinear", ["m", "ys", "yz"], ["y"]),
        node("MatMulInteger", ["f", "mq", "yz", "mz"], ["z"]),
        node("ConvInteger", ["xq", "wq", "xz", "wz0"], ["i"], group=1),
    ]  # fmt: skip
    stored = [
        array("xs", 0.05, np.float32), array("xz", 128, np.uint8),
        array("wq", np.arange(2 * 27).reshape(2, 3, 3, 3) % 17 - 8, np.int8),
        array("ws", [0.02, 0.03], np.float32), array("wz", [0, 0], np.int8),
        array("ys", 0.1, np.float32), array("yz", 100, np.uint8), array("b", [5, 6], np.int32),
        array("mq", np.arange(18 * 4).reshape(18, 4) % 13 - 6, np.int8),
        array("ms", 0.04, np.float32), array("mz", 0, np.int8), array("wz0", 0, np.int8),
    ]  # fmt: skip
    outputs = [value("y", None), value("z", None, TensorProto.INT32),
               value("i", None, TensorProto.INT32)]  # fmt: skip
    return model(nodes, [value("x", [1, 3, 6, 6])], outputs, stored)


def microsoft() -> ModelProto:
    domain = "com.microsoft"
    nodes = [
        node("BiasGelu", ["x", "b"], ["g"], domain=domain),
        node("FastGelu", ["g", "b"], ["f"], domain=domain),
        node("SkipLayerNormalization", ["f", "x", "s", "b", "b"], ["n"], domain=domain,
              epsilon=1e-5),
        node("Attention", ["n", "w", "wb"], ["a"], domain=domain, num_heads=2),
        node("QuantizeLinear", ["a", "qs", "qz"], ["q"], domain=domain),
        node("QLinearAdd", ["q", "qs", "qz", "q", "qs", "qz", "qs", "qz"], ["p"], domain=domain),
        node("DequantizeLinear", ["p", "qs", "qz"], ["y"], domain=domain),
        node("DynamicQuantizeMatMul", ["y", "mq", "ms", "mz"], ["z"], domain=domain),
        node("MatMulNBits", ["n", "nb", "ns"], ["k"], domain=domain, K=8, N=4, bits=4,
              block_size=16),
    ]  # fmt: skip
    stored = [
        random("b", 8), random("s", 8), random("w", 8, 24), random("wb", 24),
        array("qs", 0.05, np.float32), array("qz", 128, np.uint8),
        array("mq", np.arange(32).reshape(8, 4) % 11 - 5, np.int8),
        array("ms", 0.03, np.float32), array("mz", 0, np.int8),
        array("nb", np.arange(32).reshape(4, 1, 8), np.uint8), random("ns", 4),
    ]  # fmt: skip
    outputs = [value("y", None), value("z", None), value("k", None)]
    return model(nodes, [value("x", [1, 3, 8])], outputs, stored, domains=[domain])
