"""Well-known network topologies with random weights, as ONNX files, for timing only.

Run as `python benchmarks/topologies.py FOLDER` to write resnet18, resnet50 and mobilenetv2.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (1, 3, 224, 224)
CLASSES = 1000


class _Network:
    """Collects the nodes and weights of one model; activations keep their variance."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def convolution(
        self,
        data: str,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: str | None = "Relu",
    ) -> str:
        """Convolution, batch norm, activation."""
        fan_in = kernel * kernel * inputs // groups
        weights = self.random.standard_normal((outputs, inputs // groups, kernel, kernel))
        data = self.node(
            "Conv",
            data,
            self.constant(weights * math.sqrt(2 / fan_in)),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )
        near_one = 1 + 0.1 * self.random.random((2, outputs))
        near_zero = 0.1 * self.random.standard_normal((2, outputs))
        scale, shift, mean, variance = near_one[0], near_zero[0], near_zero[1], near_one[1]
        statistics = [self.constant(value) for value in (scale, shift, mean, variance)]
        data = self.node("BatchNormalization", data, *statistics)
        if activation == "Relu":
            return self.node("Relu", data)
        if activation == "Relu6":
            zero, six = self.constant(np.array(0.0)), self.constant(np.array(6.0))
            return self.node("Clip", data, zero, six)
        return data

    def classifier(self, data: str, channels: int) -> onnx.ModelProto:
        """Global average pooling, one dense layer, and the finished model."""
        data = self.node("Flatten", self.node("GlobalAveragePool", data))
        weights = 0.02 * self.random.standard_normal((CLASSES, channels))
        bias = self.constant(np.zeros(CLASSES))
        output = self.node("Gemm", data, self.constant(weights), bias, transB=1)
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, IMAGE)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, CLASSES])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def resnet(depth: int) -> onnx.ModelProto:
    """ResNet-18 or ResNet-50 (He et al., 2015, table 1)."""
    bottleneck, repeats = {18: (False, (2, 2, 2, 2)), 50: (True, (3, 4, 6, 3))}[depth]
    net = _Network()
    data = net.convolution("input", 3, 64, 7, 2)
    data = net.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), repeats, strict=True)):
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            outputs = width * 4 if bottleneck else width
            shortcut = data
            if bottleneck:
                data = net.convolution(data, channels, width, 1)
                data = net.convolution(data, width, width, 3, stride)
                data = net.convolution(data, width, outputs, 1, activation=None)
            else:
                data = net.convolution(data, channels, width, 3, stride)
                data = net.convolution(data, width, outputs, 3, activation=None)
            if stride != 1 or channels != outputs:
                shortcut = net.convolution(shortcut, channels, outputs, 1, stride, activation=None)
            data = net.node("Relu", net.node("Add", data, shortcut))
            channels = outputs
    return net.classifier(data, channels)


# expansion, output channels, repeats, stride (Sandler et al., 2018, table 2)
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2, width 1.0."""
    net = _Network()
    data = net.convolution("input", 3, 32, 3, 2, activation="Relu6")
    channels = 32
    for expansion, outputs, repeats, first_stride in _INVERTED_RESIDUALS:
        for block in range(repeats):
            stride = first_stride if block == 0 else 1
            hidden = channels * expansion
            shortcut = data
            if expansion > 1:
                data = net.convolution(data, channels, hidden, 1, activation="Relu6")
            data = net.convolution(data, hidden, hidden, 3, stride, hidden, "Relu6")
            data = net.convolution(data, hidden, outputs, 1, activation=None)
            if stride == 1 and channels == outputs:
                data = net.node("Add", data, shortcut)
            channels = outputs
    data = net.convolution(data, channels, 1280, 1, activation="Relu6")
    return net.classifier(data, 1280)


TOPOLOGIES = {
    "resnet18": lambda: resnet(18),
    "resnet50": lambda: resnet(50),
    "mobilenetv2": mobilenet_v2,
}


def write(folder: Path) -> dict[str, Path]:
    """The files of all topologies, written where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.onnx" for name in TOPOLOGIES}
    for name, file in files.items():
        if not file.exists():
            onnx.save(TOPOLOGIES[name](), file)
    return files


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])).values():
        print(path)
