"""Small networks of the kinds that are benchmarked, written node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Network:
    """A small ONNX graph, written node by node."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.value(self.random.uniform(low, high, shape).astype("float32"))

    def value(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, ci: int, co: int, k: int, group: int = 1, **attributes: object) -> str:
        attributes.setdefault("pads", [k // 2] * 4)
        return self.node(
            "Conv",
            x,
            self.weight(co, ci // group, k, k),
            self.weight(co),
            group=group,
            **attributes,
        )

    def norm(self, x: str, channels: int) -> str:
        parameters = [self.weight(channels) for _ in range(3)]
        variance = self.weight(channels, low=0.5, high=2.0)
        return self.node("BatchNormalization", x, *parameters, variance)

    def quantized(self, x: str, scale: float, low: int = -128) -> str:
        """`x` rounded to 8 bits: signed for a `low` of -128, unsigned for 0."""
        dtype = "int8" if low else "uint8"
        parameters = self.value(np.float32(scale)), self.value(np.zeros((), dtype))
        return self.node(
            "DequantizeLinear", self.node("QuantizeLinear", x, *parameters), *parameters
        )

    def codes(self, *shape: int, axis: int) -> str:
        """Weights of 8 bits with a scale for each channel along `axis`."""
        channels = shape[axis]
        codes = self.value(self.random.integers(-127, 128, shape).astype("int8"))
        scales = self.value(self.random.uniform(0.001, 0.002, channels).astype("float32"))
        zeros = self.value(np.zeros(channels, "int8"))
        return self.node("DequantizeLinear", codes, scales, zeros, axis=axis)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opset, ir_version=8)
        )


def residual() -> onnx.ModelProto:
    n = Network((1, 3, 17, 19))
    y = n.node("Relu", n.norm(n.conv("x", 3, 24, 3, strides=[2, 2]), 24))
    z = n.node("Relu", n.norm(n.conv(y, 24, 7, 1), 7))
    z = n.norm(n.conv(z, 7, 24, 3), 24)
    y = n.node("Relu", n.node("Add", z, y))
    y = n.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = n.node("Flatten", n.node("GlobalAveragePool", y))
    return n.model(n.node("Gemm", y, n.weight(10, 24), n.weight(10), transB=1))


def mobile() -> onnx.ModelProto:
    n = Network((2, 3, 16, 16))
    six = [n.value(np.float32(bound)) for bound in (0, 6)]
    y = n.node("Clip", n.norm(n.conv("x", 3, 16, 3, strides=[2, 2]), 16), *six)
    y = n.node("Clip", n.norm(n.conv(y, 16, 16, 3, group=16), 16), *six)
    # Squeeze and excite, with a hard sigmoid.
    gate = n.node("Relu", n.conv(n.node("GlobalAveragePool", y), 16, 4, 1))
    gate = n.node("HardSigmoid", n.conv(gate, 4, 16, 1))
    y = n.node("Mul", y, gate)
    y = n.conv(y, 16, 10, 1)
    return n.model(n.node("HardSwish", n.conv(y, 10, 20, 3, group=5)))


def pyramid() -> onnx.ModelProto:
    n = Network((1, 3, 24, 16))
    a = n.node("Relu", n.conv("x", 3, 8, 3, strides=[2, 2]))
    b = n.node("Sigmoid", n.conv(a, 8, 12, 3, strides=[2, 2]))
    scales = n.value(np.array([1, 1, 2, 2], "float32"))
    up = n.node(
        "Resize",
        b,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    up = n.node("Pad", up, n.value(np.array([0, 0, 0, 0, 0, 0, 1, 1])))
    up = n.node("AveragePool", up, kernel_shape=[2, 2], strides=[1, 1])
    y = n.node("Concat", a, up, axis=1)
    y = n.node("ConvTranspose", y, n.weight(20, 6, 2, 2), n.weight(6), strides=[2, 2])
    y = n.node("Relu", n.norm(y, 6))
    y = n.node("ConvTranspose", y, n.weight(6, 2, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    return n.model(n.node("Sigmoid", y))


def attention(tokens: int = 12, width: int = 32, heads: int = 4) -> onnx.ModelProto:
    n = Network((1, tokens, width))
    size = width // heads

    def linear(x: str, rows: int, columns: int) -> str:
        return n.node("Add", n.node("MatMul", x, n.weight(rows, columns)), n.weight(columns))

    split = n.value(np.array([1, tokens, heads, size]))
    q, k, v = (n.node("Reshape", linear("x", width, width), split) for _ in range(3))
    q, v = (n.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = n.node("Transpose", k, perm=[0, 2, 3, 1])
    scores = n.node("Div", n.node("MatMul", q, k), n.value(np.float32(np.sqrt(size))))
    mixed = n.node("MatMul", n.node("Softmax", scores, axis=-1), v)
    mixed = n.node("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = n.node("Reshape", mixed, n.value(np.array([1, tokens, width])))
    y = n.node("Add", linear(mixed, width, width), "x")
    y = n.node("LayerNormalization", y, n.weight(width), n.weight(width), axis=-1)
    h = linear(y, width, 2 * width)
    gate = n.node("Erf", n.node("Div", h, n.value(np.float32(np.sqrt(2)))))
    h = n.node("Mul", h, n.node("Add", gate, n.value(np.float32(1))))
    h = n.node("Mul", h, n.value(np.float32(0.5)))
    return n.model(n.node("Add", linear(h, 2 * width, width), y))


def one_dimensional() -> onnx.ModelProto:
    n = Network((1, 5, 40))
    y = n.node("Conv", "x", n.weight(16, 5, 5), n.weight(16), strides=[2], pads=[2, 2])
    y = n.node("PRelu", n.norm(y, 16), n.weight(16, 1))
    y = n.node("MaxPool", y, kernel_shape=[2], strides=[2])
    y = n.node("Transpose", y, perm=[0, 2, 1])
    y = n.node("MatMul", y, n.weight(16, 9))
    return n.model(n.node("LogSoftmax", y, axis=-1))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual,
    "mobile": mobile,
    "pyramid": pyramid,
    "attention": attention,
    "one_dimensional": one_dimensional,
}


def convolution_stages() -> onnx.ModelProto:
    """What ResNets are made of, at their sizes: 3x3 with and without a stride, bottlenecks."""
    n = Network((1, 3, 112, 112))
    y = n.node("Relu", n.conv("x", 3, 32, 7, strides=[2, 2]))
    for inputs, channels, stride in ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        y = n.node("Relu", n.norm(n.conv(y, inputs, channels, 3, strides=[stride] * 2), channels))
    z = n.node("Relu", n.conv(n.node("Relu", n.conv(y, 128, 48, 1)), 48, 48, 3))
    y = n.node("Relu", n.node("Add", n.conv(z, 48, 128, 1), y))
    y = n.node("Flatten", n.node("GlobalAveragePool", y))
    return n.model(n.node("Gemm", y, n.weight(1000, 128), n.weight(1000), transB=1))


def inverted_residuals() -> onnx.ModelProto:
    """What MobileNets are made of, at their sizes: depthwise convolutions between 1x1."""
    n = Network((1, 3, 112, 112))
    six = [n.value(np.float32(bound)) for bound in (0, 6)]
    y = n.node("Clip", n.conv("x", 3, 32, 3, strides=[2, 2]), *six)
    for inputs, wide, channels, stride in ((32, 96, 24, 2), (24, 144, 24, 1), (24, 144, 40, 2)):
        z = n.node("Clip", n.conv(y, inputs, wide, 1), *six)
        z = n.node("Clip", n.conv(z, wide, wide, 3, group=wide, strides=[stride] * 2), *six)
        z = n.conv(z, wide, channels, 1)
        y = n.node("Add", z, y) if (inputs, stride) == (channels, 1) else z
    return n.model(n.node("GlobalAveragePool", y))


def transformer_block() -> onnx.ModelProto:
    """One layer of MiniLM, at its size."""
    return attention(tokens=128, width=384, heads=12)


def integer_convolutions() -> onnx.ModelProto:
    """Convolutions, a depthwise one among them, and a residual, as Q/DQ graphs have them."""
    n = Network((1, 3, 56, 56))

    def conv(x: str, ci: int, co: int, k: int, group: int = 1, stride: int = 1) -> str:
        weights = n.codes(co, ci // group, k, k, axis=0)
        sides = {"pads": [k // 2] * 4, "strides": [stride] * 2}
        return n.node("Conv", x, weights, n.weight(co), group=group, **sides)

    y = n.quantized("x", 0.02)
    y = n.quantized(n.node("Relu", conv(y, 3, 32, 3, stride=2)), 0.03, low=0)
    z = n.quantized(n.node("Relu", conv(y, 32, 32, 3, group=32)), 0.03, low=0)
    z = n.quantized(n.node("Relu", conv(z, 32, 64, 3)), 0.03, low=0)
    z = n.quantized(conv(z, 64, 32, 1), 0.03)
    y = n.quantized(n.node("Relu", n.node("Add", z, y)), 0.04, low=0)
    y = n.quantized(n.node("GlobalAveragePool", y), 0.04, low=0)
    y = n.node("Flatten", y)
    return n.model(n.node("Gemm", y, n.codes(32, 100, axis=1), n.weight(100)))


def integer_products() -> onnx.ModelProto:
    """Matrix products of a transformer in 8 bits."""
    n = Network((1, 64, 256))
    y = n.quantized("x", 0.02)
    y = n.node("Add", n.node("MatMul", y, n.codes(256, 512, axis=1)), n.weight(512))
    y = n.quantized(n.node("Relu", y), 0.05, low=0)
    y = n.node("Add", n.node("MatMul", y, n.codes(512, 256, axis=1)), n.weight(256))
    return n.model(n.node("Softmax", y, axis=-1))


# Of the sizes that models have: too large to be compiled in many tests, not to be scheduled.
LARGE_NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolution_stages": convolution_stages,
    "inverted_residuals": inverted_residuals,
    "transformer_block": transformer_block,
    "integer_convolutions": integer_convolutions,
    "integer_products": integer_products,
}
