"""Layers and tensor arithmetic: convolutions, pools, attention, recurrence, indices."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.fuzz.building import FLOAT, INT64, array, model, node, random, value


def convolutions() -> ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1],
              dilations=[1, 1], group=1, auto_pad="NOTSET"),
        node("BatchNormalization", ["c", "s", "bias", "mean", "var"], ["n"], epsilon=1e-5),
        node("LeakyRelu", ["n"], ["l"], alpha=0.1),
        node("Conv", ["l", "dw"], ["d"], kernel_shape=[3, 3], group=4, pads=[1] * 4),
        node("Add", ["l", "d"], ["a"]),
        node("ConvTranspose", ["a", "t"], ["u"], strides=[2, 2], output_padding=[1, 1]),
        node("Clip", ["u", "low", "high"], ["k"]),
        node("GlobalAveragePool", ["k"], ["p"]),
        node("Flatten", ["p"], ["f"], axis=1),
        node("Gemm", ["f", "g", "gb"], ["y"], alpha=1.0, beta=1.0, transB=1),
    ]  # fmt: skip
    stored = [
        random("w", 4, 3, 3, 3), random("b", 4), random("s", 4), random("bias", 4),
        random("mean", 4), array("var", [1.0] * 4, np.float32), random("dw", 4, 1, 3, 3),
        random("t", 4, 2, 3, 3), array("low", 0.0, np.float32), array("high", 6.0, np.float32),
        random("g", 5, 2), random("gb", 5),
    ]  # fmt: skip
    return model(nodes, [value("x", ["batch", 3, 6, 6])], [value("y", ["batch", 5])], stored)


def pools() -> ModelProto:
    nodes = [
        node("MaxPool", ["x"], ["m"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("AveragePool", ["m"], ["a"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        node("InstanceNormalization", ["a", "s", "b"], ["i"], epsilon=1e-5),
        node("LRN", ["i"], ["l"], size=3, alpha=1e-4, beta=0.75, bias=1.0),
        node("DepthToSpace", ["l"], ["d"], blocksize=2, mode="DCR"),
        node("SpaceToDepth", ["d"], ["t"], blocksize=2),
        node("PRelu", ["t", "slope"], ["p"]),
        node("Softmax", ["p"], ["o"], axis=1),
        node("ArgMax", ["o"], ["y"], axis=1, keepdims=0),
    ]
    stored = [random("s", 4), random("b", 4), random("slope", 4, 1, 1)]
    outputs = [value("y", None, INT64), value("o", None)]
    return model(nodes, [value("x", [1, 4, 7, 7])], outputs, stored)


def shape_arithmetic() -> ModelProto:
    nodes = [
        node("Shape", ["x"], ["sh"]),
        node("Gather", ["sh", "i0"], ["d0"], axis=0),
        node("Unsqueeze", ["d0", "ax"], ["u"]),
        node("Concat", ["u", "m1"], ["ns"], axis=0),
        node("Reshape", ["x", "ns"], ["r"], allowzero=0),
        node("Pad", ["r", "pads", "pv"], ["pd"], mode="constant"),
        node("Slice", ["pd", "st", "en", "axs", "stp"], ["sl"]),
        node("Tile", ["sl", "rep"], ["tl"]),
        node("ReduceMean", ["tl", "ra"], ["rm"], keepdims=1),
        node("Expand", ["rm", "ex"], ["e"]),
        node("ConstantOfShape", ["ex"], ["cs"], value=array("", [0.5], np.float32)),
        node("Add", ["e", "cs"], ["y1"]),
        node("Range", ["rs", "rl", "rd"], ["rg"]),
        node("Cast", ["rg"], ["rgf"], to=FLOAT),
        node("Add", ["y1", "rgf"], ["y2"]),
        node("Split", ["y2", "sp"], ["y", "rest"], axis=1),
        node("Transpose", ["rest"], ["z"], perm=[1, 0]),
    ]
    stored = [
        array("i0", 0), array("ax", [0]), array("m1", [-1]), array("pads", [0, 1, 0, 1]),
        array("pv", 0.5, np.float32), array("st", [1]), array("en", [6]), array("axs", [1]),
        array("stp", [1]), array("rep", [2, 2]), array("ra", [1]), array("ex", [4, 5]),
        array("rs", 0), array("rl", 5), array("rd", 1), array("sp", [2, 3]),
    ]  # fmt: skip
    return model(nodes, [value("x", [2, 3, 2])], [value("y", None), value("z", None)], stored)


def transformer() -> ModelProto:
    nodes = [
        node("Gather", ["table", "ids"], ["e"], axis=0),
        node("LayerNormalization", ["e", "ls", "lb"], ["n"], axis=-1, epsilon=1e-5),
        node("MatMul", ["n", "wq"], ["q0"]),
        node("MatMul", ["n", "wk"], ["k0"]),
        node("Reshape", ["q0", "heads"], ["q1"]),
        node("Reshape", ["k0", "heads"], ["k1"]),
        node("Transpose", ["q1"], ["q"], perm=[0, 2, 1, 3]),
        node("Transpose", ["k1"], ["k"], perm=[0, 2, 3, 1]),
        node("MatMul", ["q", "k"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Where", ["mask", "s1", "minus"], ["s2"]),
        node("Softmax", ["s2"], ["p"], axis=-1),
        node("MatMul", ["p", "q"], ["o0"]),
        node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "flat"], ["o2"]),
        node("Add", ["o2", "e"], ["r"]),
        node("Erf", ["r"], ["g"]),
        node("Einsum", ["g", "wq"], ["y"], equation="bsd,de->bse"),
    ]
    stored = [
        random("table", 11, 8), random("ls", 8), random("lb", 8), random("wq", 8, 8),
        random("wk", 8, 8), array("heads", [0, 0, 2, 4]), array("flat", [0, 0, 8]),
        array("scale", 0.5, np.float32), array("minus", -1e9, np.float32),
        array("mask", np.tri(5, dtype=bool)[None, None], bool),
    ]  # fmt: skip
    return model(nodes, [value("ids", [1, 5], INT64)], [value("y", None)], stored)


def recurrent() -> ModelProto:
    nodes = [
        node("LSTM", ["x", "W", "R", "B"], ["Y", "Yh"], hidden_size=4, direction="forward",
              activations=["Sigmoid", "Tanh", "Tanh"]),
        node("Squeeze", ["Yh", "z"], ["h"]),
        node("GRU", ["x", "W2", "R2"], ["", "Y2"], hidden_size=3, linear_before_reset=1),
        node("Squeeze", ["Y2", "z"], ["h2"]),
        node("RNN", ["x", "W3", "R3"], ["", "Y3"], hidden_size=2, direction="reverse"),
        node("Squeeze", ["Y3", "z"], ["h3"]),
        node("Concat", ["h", "h2", "h3"], ["y"], axis=-1),
    ]  # fmt: skip
    stored = [
        random("W", 1, 16, 5), random("R", 1, 16, 4), random("B", 1, 32), array("z", [0]),
        random("W2", 1, 9, 5), random("R2", 1, 9, 3), random("W3", 1, 2, 5),
        random("R3", 1, 2, 2),
    ]  # fmt: skip
    return model(nodes, [value("x", [3, 1, 5])], [value("y", None)], stored)


def resize() -> ModelProto:
    nodes = [
        node("Resize", ["x", "", "scales"], ["a"], mode="linear",
              coordinate_transformation_mode="half_pixel"),
        node("Resize", ["a", "", "", "sizes"], ["b"], mode="nearest", nearest_mode="floor"),
        node("GridSample", ["b", "grid"], ["y"], mode="linear", padding_mode="zeros"),
    ]  # fmt: skip
    stored = [
        array("scales", [1, 1, 2, 2], np.float32), array("sizes", [1, 2, 5, 5]),
        random("grid", 1, 3, 3, 2),
    ]  # fmt: skip
    return model(nodes, [value("x", [1, 2, 4, 4])], [value("y", None)], stored)


def indices() -> ModelProto:
    nodes = [
        node("TopK", ["x", "k"], ["v", "i"], axis=1, largest=1, sorted=1),
        node("GatherElements", ["x", "i"], ["g"], axis=1),
        node("ScatterElements", ["x", "i", "v"], ["s"], axis=1),
        node("GatherND", ["s", "nd"], ["n"], batch_dims=0),
        node("ScatterND", ["s", "nd", "up"], ["m"]),
        node("OneHot", ["i", "depth", "values"], ["h"], axis=-1),
        node("ReduceSum", ["h", "axes"], ["r"], keepdims=0),
        node("CumSum", ["m", "axis"], ["c"]),
        node("Trilu", ["c"], ["y"], upper=1),
        node("NonZero", ["flags"], ["w"]),
    ]
    stored = [
        array("k", [2]), array("nd", [[0, 1], [1, 2]]), array("up", [1.0, 2.0], np.float32),
        array("depth", 4), array("values", [0.0, 1.0], np.float32), array("axes", [0, 1]),
        array("axis", 1), array("flags", [0, 1, 1]),
    ]  # fmt: skip
    outputs = [value("y", None), value("n", None), value("r", None), value("w", None, INT64)]
    return model(nodes, [value("x", [2, 4])], outputs, stored)


def constants() -> ModelProto:
    """Much to fold, by operators that make a large result of small operands."""
    nodes = [
        node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0]),
        node("Constant", [], ["i"], value_ints=[2, 3]),
        node("Constant", [], ["one"], value_int=1),
        node("ConstantOfShape", ["i"], ["z"]),
        node("Expand", ["f", "i"], ["e"]),
        node("MatMul", ["column", "row"], ["mm"]),
        node("Pad", ["e", "pads"], ["p"]),
        node("OneHot", ["i", "depth", "values"], ["o"]),
        node("Resize", ["image", "", "scales"], ["r"], mode="nearest"),
        node("Einsum", ["f", "f"], ["s"], equation="i,j->ij"),
        node("EyeLike", ["z"], ["eye"], dtype=FLOAT),
        node("HannWindow", ["depth"], ["hann"]),
        node("Bernoulli", ["e"], ["random"]),
        node("ReduceSum", ["p"], ["sum1"], keepdims=0),
        node("ReduceSum", ["o"], ["sum2"], keepdims=0),
        node("ReduceSum", ["r"], ["sum3"], keepdims=0),
        node("Sum", ["x", "sum1", "sum2", "sum3", "s"], ["y0"]),
        node("Add", ["y0", "mm"], ["y1"]),
        node("ReduceMax", ["hann"], ["top"], keepdims=0),
        node("Mul", ["y1", "top"], ["y"]),
    ]
    stored = [
        random("column", 3, 1), random("row", 1, 3), array("pads", [1, 1, 1, 1]),
        array("depth", 5), array("values", [0.0, 1.0], np.float32), random("image", 1, 1, 2, 2),
        array("scales", [1, 1, 2, 2], np.float32),
    ]  # fmt: skip
    return model(nodes, [value("x", [3, 3])], [value("y", None)], stored)
