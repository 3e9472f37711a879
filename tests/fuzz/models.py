"""Small models of every kind that the front end reads: what mutations begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Sample:
    """A model as the bytes of its file, and the files that lie beside it by name."""

    model: bytes
    beside: dict[str, bytes] = field(default_factory=dict)


def samples() -> dict[str, Sample]:
    """Models by name; the same ones every time."""
    models = {
        "conv": _convolutions(),
        "pools": _pools(),
        "shapes": _shape_arithmetic(),
        "transformer": _transformer(),
        "lstm": _recurrent(),
        "if": _branches(),
        "loop": _loop(),
        "scan": _scan(),
        "qdq": _quantize_dequantize(),
        "qlinear": _quantized_linear(),
        "microsoft": _microsoft(),
        "functions": _functions(),
        "sequences": _sequences(),
        "optional": _optional(),
        "sparse": _sparse(),
        "resize": _resize(),
        "indices": _indices(),
        "constants": _constants(),
    }
    result = {name: Sample(model.SerializeToString()) for name, model in models.items()}
    result["external"] = _external()
    return result


def _value(name: str, shape: Sequence[Any] | None, dtype: int = _FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _stored(name: str, *shape: int, seed: int = 0) -> TensorProto:
    generator = np.random.default_rng(seed)
    return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)


def _array(name: str, values: Any, dtype: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    stored: Sequence[TensorProto] = (),
    opset: int = 18,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)


_node = helper.make_node


def _convolutions() -> ModelProto:
    nodes = [
        _node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1],
              dilations=[1, 1], group=1, auto_pad="NOTSET"),
        _node("BatchNormalization", ["c", "s", "bias", "mean", "var"], ["n"], epsilon=1e-5),
        _node("LeakyRelu", ["n"], ["l"], alpha=0.1),
        _node("Conv", ["l", "dw"], ["d"], kernel_shape=[3, 3], group=4, pads=[1] * 4),
        _node("Add", ["l", "d"], ["a"]),
        _node("ConvTranspose", ["a", "t"], ["u"], strides=[2, 2], output_padding=[1, 1]),
        _node("Clip", ["u", "low", "high"], ["k"]),
        _node("GlobalAveragePool", ["k"], ["p"]),
        _node("Flatten", ["p"], ["f"], axis=1),
        _node("Gemm", ["f", "g", "gb"], ["y"], alpha=1.0, beta=1.0, transB=1),
    ]  # fmt: skip
    stored = [
        _stored("w", 4, 3, 3, 3), _stored("b", 4), _stored("s", 4), _stored("bias", 4),
        _stored("mean", 4), _array("var", [1.0] * 4, np.float32), _stored("dw", 4, 1, 3, 3),
        _stored("t", 4, 2, 3, 3), _array("low", 0.0, np.float32), _array("high", 6.0, np.float32),
        _stored("g", 5, 2), _stored("gb", 5),
    ]  # fmt: skip
    return _model(nodes, [_value("x", ["batch", 3, 6, 6])], [_value("y", ["batch", 5])], stored)


def _pools() -> ModelProto:
    nodes = [
        _node("MaxPool", ["x"], ["m"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        _node("AveragePool", ["m"], ["a"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        _node("InstanceNormalization", ["a", "s", "b"], ["i"], epsilon=1e-5),
        _node("LRN", ["i"], ["l"], size=3, alpha=1e-4, beta=0.75, bias=1.0),
        _node("DepthToSpace", ["l"], ["d"], blocksize=2, mode="DCR"),
        _node("SpaceToDepth", ["d"], ["t"], blocksize=2),
        _node("PRelu", ["t", "slope"], ["p"]),
        _node("Softmax", ["p"], ["o"], axis=1),
        _node("ArgMax", ["o"], ["y"], axis=1, keepdims=0),
    ]
    stored = [_stored("s", 4), _stored("b", 4), _stored("slope", 4, 1, 1)]
    outputs = [_value("y", None, _INT64), _value("o", None)]
    return _model(nodes, [_value("x", [1, 4, 7, 7])], outputs, stored)


def _shape_arithmetic() -> ModelProto:
    nodes = [
        _node("Shape", ["x"], ["sh"]),
        _node("Gather", ["sh", "i0"], ["d0"], axis=0),
        _node("Unsqueeze", ["d0", "ax"], ["u"]),
        _node("Concat", ["u", "m1"], ["ns"], axis=0),
        _node("Reshape", ["x", "ns"], ["r"], allowzero=0),
        _node("Pad", ["r", "pads", "pv"], ["pd"], mode="constant"),
        _node("Slice", ["pd", "st", "en", "axs", "stp"], ["sl"]),
        _node("Tile", ["sl", "rep"], ["tl"]),
        _node("ReduceMean", ["tl", "ra"], ["rm"], keepdims=1),
        _node("Expand", ["rm", "ex"], ["e"]),
        _node("ConstantOfShape", ["ex"], ["cs"], value=_array("", [0.5], np.float32)),
        _node("Add", ["e", "cs"], ["y1"]),
        _node("Range", ["rs", "rl", "rd"], ["rg"]),
        _node("Cast", ["rg"], ["rgf"], to=_FLOAT),
        _node("Add", ["y1", "rgf"], ["y2"]),
        _node("Split", ["y2", "sp"], ["y", "rest"], axis=1),
        _node("Transpose", ["rest"], ["z"], perm=[1, 0]),
    ]
    stored = [
        _array("i0", 0), _array("ax", [0]), _array("m1", [-1]), _array("pads", [0, 1, 0, 1]),
        _array("pv", 0.5, np.float32), _array("st", [1]), _array("en", [6]), _array("axs", [1]),
        _array("stp", [1]), _array("rep", [2, 2]), _array("ra", [1]), _array("ex", [4, 5]),
        _array("rs", 0), _array("rl", 5), _array("rd", 1), _array("sp", [2, 3]),
    ]  # fmt: skip
    return _model(nodes, [_value("x", [2, 3, 2])], [_value("y", None), _value("z", None)], stored)


def _transformer() -> ModelProto:
    nodes = [
        _node("Gather", ["table", "ids"], ["e"], axis=0),
        _node("LayerNormalization", ["e", "ls", "lb"], ["n"], axis=-1, epsilon=1e-5),
        _node("MatMul", ["n", "wq"], ["q0"]),
        _node("MatMul", ["n", "wk"], ["k0"]),
        _node("Reshape", ["q0", "heads"], ["q1"]),
        _node("Reshape", ["k0", "heads"], ["k1"]),
        _node("Transpose", ["q1"], ["q"], perm=[0, 2, 1, 3]),
        _node("Transpose", ["k1"], ["k"], perm=[0, 2, 3, 1]),
        _node("MatMul", ["q", "k"], ["s0"]),
        _node("Mul", ["s0", "scale"], ["s1"]),
        _node("Where", ["mask", "s1", "minus"], ["s2"]),
        _node("Softmax", ["s2"], ["p"], axis=-1),
        _node("MatMul", ["p", "q"], ["o0"]),
        _node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        _node("Reshape", ["o1", "flat"], ["o2"]),
        _node("Add", ["o2", "e"], ["r"]),
        _node("Erf", ["r"], ["g"]),
        _node("Einsum", ["g", "wq"], ["y"], equation="bsd,de->bse"),
    ]
    stored = [
        _stored("table", 11, 8), _stored("ls", 8), _stored("lb", 8), _stored("wq", 8, 8),
        _stored("wk", 8, 8), _array("heads", [0, 0, 2, 4]), _array("flat", [0, 0, 8]),
        _array("scale", 0.5, np.float32), _array("minus", -1e9, np.float32),
        _array("mask", np.tri(5, dtype=bool)[None, None], bool),
    ]  # fmt: skip
    return _model(nodes, [_value("ids", [1, 5], _INT64)], [_value("y", None)], stored)


def _recurrent() -> ModelProto:
    nodes = [
        _node("LSTM", ["x", "W", "R", "B"], ["Y", "Yh"], hidden_size=4, direction="forward",
              activations=["Sigmoid", "Tanh", "Tanh"]),
        _node("Squeeze", ["Yh", "z"], ["h"]),
        _node("GRU", ["x", "W2", "R2"], ["", "Y2"], hidden_size=3, linear_before_reset=1),
        _node("Squeeze", ["Y2", "z"], ["h2"]),
        _node("RNN", ["x", "W3", "R3"], ["", "Y3"], hidden_size=2, direction="reverse"),
        _node("Squeeze", ["Y3", "z"], ["h3"]),
        _node("Concat", ["h", "h2", "h3"], ["y"], axis=-1),
    ]  # fmt: skip
    stored = [
        _stored("W", 1, 16, 5), _stored("R", 1, 16, 4), _stored("B", 1, 32), _array("z", [0]),
        _stored("W2", 1, 9, 5), _stored("R2", 1, 9, 3), _stored("W3", 1, 2, 5),
        _stored("R3", 1, 2, 2),
    ]  # fmt: skip
    return _model(nodes, [_value("x", [3, 1, 5])], [_value("y", None)], stored)


def _branches() -> ModelProto:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph([_node(operator, ["x"], [name])], name, [], [_value(name, [2, 3])])

    nodes = [
        _node("If", ["c"], ["a"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
        _node("If", ["yes"], ["b"], then_branch=branch("u", "Exp"), else_branch=branch("v", "Abs")),
        _node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    inputs = [_value("x", [2, 3]), _value("c", [], _BOOL)]
    return _model(nodes, inputs, [_value("y", [2, 3])], [_array("yes", True, bool)])


def _loop() -> ModelProto:
    body = helper.make_graph(
        [
            _node("Identity", ["cond"], ["cond_out"]),
            _node("Cast", ["i"], ["f"], to=_FLOAT),
            _node("Add", ["state", "f"], ["state_out"]),
            _node("Mul", ["state_out", "x"], ["scan_out"]),
        ],
        "body",
        [_value("i", [], _INT64), _value("cond", [], _BOOL), _value("state", [2, 3])],
        [_value("cond_out", [], _BOOL), _value("state_out", [2, 3]), _value("scan_out", [2, 3])],
    )
    nodes = [_node("Loop", ["trips", "yes", "x"], ["last", "all"], body=body)]
    stored = [_array("trips", 3), _array("yes", True, bool)]
    return _model(nodes, [_value("x", [2, 3])], [_value("last", None), _value("all", None)], stored)


def _scan() -> ModelProto:
    body = helper.make_graph(
        [_node("Add", ["s", "e"], ["s_out"]), _node("Identity", ["s_out"], ["o"])],
        "body",
        [_value("s", [3]), _value("e", [3])],
        [_value("s_out", [3]), _value("o", [3])],
    )
    nodes = [
        _node("Scan", ["init", "x"], ["last", "all"], body=body, num_scan_inputs=1,
              scan_input_axes=[0], scan_output_axes=[1], scan_input_directions=[1]),
    ]  # fmt: skip
    outputs = [_value("last", None), _value("all", None)]
    return _model(nodes, [_value("x", [4, 3])], outputs, [_stored("init", 3)])


def _quantize_dequantize() -> ModelProto:
    nodes = [
        _node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        _node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        _node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        _node("Conv", ["xd", "wd"], ["c"], pads=[1] * 4),
        _node("Relu", ["c"], ["r"]),
        _node("QuantizeLinear", ["r", "xs", "xz"], ["rq"]),
        _node("DequantizeLinear", ["rq", "xs", "xz"], ["y"]),
        _node("DynamicQuantizeLinear", ["y"], ["dq", "ds", "dz"]),
        _node("Cast", ["dq"], ["z"], to=_FLOAT),
    ]
    stored = [
        _array("xs", 0.05, np.float32), _array("xz", 128, np.uint8),
        _array("wq", np.arange(4 * 27).reshape(4, 3, 3, 3) % 17 - 8, np.int8),
        _array("ws", [0.02] * 4, np.float32), _array("wz", [0] * 4, np.int8),
    ]  # fmt: skip
    outputs = [_value("y", None), _value("z", None)]
    return _model(nodes, [_value("x", [1, 3, 6, 6])], outputs, stored)


def _quantized_linear() -> ModelProto:
    nodes = [
        _node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        _node("QLinearConv", ["xq", "xs", "xz", "wq", "ws", "wz", "ys", "yz", "b"], ["c"],
              kernel_shape=[3, 3], pads=[1] * 4),
        _node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        _node("Flatten", ["p"], ["f"]),
        _node("QLinearMatMul", ["f", "ys", "yz", "mq", "ms", "mz", "ys", "yz"], ["m"]),
        _node("DequantizeLinear", ["m", "ys", "yz"], ["y"]),
        _node("MatMulInteger", ["f", "mq", "yz", "mz"], ["z"]),
        _node("ConvInteger", ["xq", "wq", "xz", "wz0"], ["i"], group=1),
    ]  # fmt: skip
    stored = [
        _array("xs", 0.05, np.float32), _array("xz", 128, np.uint8),
        _array("wq", np.arange(2 * 27).reshape(2, 3, 3, 3) % 17 - 8, np.int8),
        _array("ws", [0.02, 0.03], np.float32), _array("wz", [0, 0], np.int8),
        _array("ys", 0.1, np.float32), _array("yz", 100, np.uint8), _array("b", [5, 6], np.int32),
        _array("mq", np.arange(18 * 4).reshape(18, 4) % 13 - 6, np.int8),
        _array("ms", 0.04, np.float32), _array("mz", 0, np.int8), _array("wz0", 0, np.int8),
    ]  # fmt: skip
    outputs = [_value("y", None), _value("z", None, TensorProto.INT32),
               _value("i", None, TensorProto.INT32)]  # fmt: skip
    return _model(nodes, [_value("x", [1, 3, 6, 6])], outputs, stored)


def _microsoft() -> ModelProto:
    domain = "com.microsoft"
    nodes = [
        _node("BiasGelu", ["x", "b"], ["g"], domain=domain),
        _node("FastGelu", ["g", "b"], ["f"], domain=domain),
        _node("SkipLayerNormalization", ["f", "x", "s", "b", "b"], ["n"], domain=domain,
              epsilon=1e-5),
        _node("Attention", ["n", "w", "wb"], ["a"], domain=domain, num_heads=2),
        _node("QuantizeLinear", ["a", "qs", "qz"], ["q"], domain=domain),
        _node("QLinearAdd", ["q", "qs", "qz", "q", "qs", "qz", "qs", "qz"], ["p"], domain=domain),
        _node("DequantizeLinear", ["p", "qs", "qz"], ["y"], domain=domain),
        _node("DynamicQuantizeMatMul", ["y", "mq", "ms", "mz"], ["z"], domain=domain),
        _node("MatMulNBits", ["n", "nb", "ns"], ["k"], domain=domain, K=8, N=4, bits=4,
              block_size=16),
    ]  # fmt: skip
    stored = [
        _stored("b", 8), _stored("s", 8), _stored("w", 8, 24), _stored("wb", 24),
        _array("qs", 0.05, np.float32), _array("qz", 128, np.uint8),
        _array("mq", np.arange(32).reshape(8, 4) % 11 - 5, np.int8),
        _array("ms", 0.03, np.float32), _array("mz", 0, np.int8),
        _array("nb", np.arange(32).reshape(4, 1, 8), np.uint8), _stored("ns", 4),
    ]  # fmt: skip
    outputs = [_value("y", None), _value("z", None), _value("k", None)]
    return _model(nodes, [_value("x", [1, 3, 8])], outputs, stored, domains=[domain])


def _functions() -> ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    inner = helper.make_function(
        "my", "F", ["a", "b"], ["o"],
        [_node("Mul", ["a", "b"], ["m"]), _node("Add", ["m", "a"], ["o"])], opsets[:1],
    )  # fmt: skip
    outer = helper.make_function(
        "my", "G", ["a"], ["o"],
        [_node("F", ["a", "a"], ["t"], domain="my"), _node("Celu", ["t"], ["o"], alpha=0.5)],
        opsets,
    )  # fmt: skip
    nodes = [
        _node("G", ["x"], ["g"], domain="my"),
        _node("F", ["g", "x"], ["h"], domain="my"),
        _node("LpNormalization", ["h"], ["y"], axis=-1, p=2),
    ]
    return _model(nodes, [_value("x", [2, 3])], [_value("y", [2, 3])], domains=["my"],
                  functions=[inner, outer])  # fmt: skip


def _sequences() -> ModelProto:
    nodes = [
        _node("SequenceConstruct", ["x", "x"], ["s"]),
        _node("SequenceInsert", ["s", "x", "one"], ["t"]),
        _node("SequenceAt", ["t", "one"], ["a"]),
        _node("ConcatFromSequence", ["t"], ["c"], axis=0, new_axis=0),
        _node("SplitToSequence", ["c", "two"], ["p"], axis=0),
        _node("SequenceErase", ["p", "one"], ["q"]),
        _node("SequenceAt", ["q", "zero"], ["b"]),
        _node("Add", ["a", "b"], ["y"]),
    ]
    stored = [_array("zero", 0), _array("one", 1), _array("two", 2)]
    return _model(nodes, [_value("x", [2, 3])], [_value("y", None)], stored)


def _optional() -> ModelProto:
    nodes = [
        _node("Optional", ["x"], ["o"]),
        _node("OptionalHasElement", ["o"], ["h"]),
        _node("OptionalGetElement", ["o"], ["g"]),
        _node("Cast", ["h"], ["f"], to=_FLOAT),
        _node("Mul", ["g", "f"], ["y"]),
    ]
    return _model(nodes, [_value("x", [2, 3])], [_value("y", None)])


def _sparse() -> ModelProto:
    model = _model([_node("Add", ["x", "s"], ["y"])], [_value("x", [3, 3])], [_value("y", None)])
    stored = model.graph.sparse_initializer.add()
    stored.values.CopyFrom(_array("s", [1.0, 2.0], np.float32))
    stored.indices.CopyFrom(_array("s_indices", [1, 5]))
    stored.dims.extend([3, 3])
    return model


def _resize() -> ModelProto:
    nodes = [
        _node("Resize", ["x", "", "scales"], ["a"], mode="linear",
              coordinate_transformation_mode="half_pixel"),
        _node("Resize", ["a", "", "", "sizes"], ["b"], mode="nearest", nearest_mode="floor"),
        _node("GridSample", ["b", "grid"], ["y"], mode="linear", padding_mode="zeros"),
    ]  # fmt: skip
    stored = [
        _array("scales", [1, 1, 2, 2], np.float32), _array("sizes", [1, 2, 5, 5]),
        _stored("grid", 1, 3, 3, 2),
    ]  # fmt: skip
    return _model(nodes, [_value("x", [1, 2, 4, 4])], [_value("y", None)], stored)


def _indices() -> ModelProto:
    nodes = [
        _node("TopK", ["x", "k"], ["v", "i"], axis=1, largest=1, sorted=1),
        _node("GatherElements", ["x", "i"], ["g"], axis=1),
        _node("ScatterElements", ["x", "i", "v"], ["s"], axis=1),
        _node("GatherND", ["s", "nd"], ["n"], batch_dims=0),
        _node("ScatterND", ["s", "nd", "up"], ["m"]),
        _node("OneHot", ["i", "depth", "values"], ["h"], axis=-1),
        _node("ReduceSum", ["h", "axes"], ["r"], keepdims=0),
        _node("CumSum", ["m", "axis"], ["c"]),
        _node("Trilu", ["c"], ["y"], upper=1),
        _node("NonZero", ["flags"], ["w"]),
    ]
    stored = [
        _array("k", [2]), _array("nd", [[0, 1], [1, 2]]), _array("up", [1.0, 2.0], np.float32),
        _array("depth", 4), _array("values", [0.0, 1.0], np.float32), _array("axes", [0, 1]),
        _array("axis", 1), _array("flags", [0, 1, 1]),
    ]  # fmt: skip
    outputs = [_value("y", None), _value("n", None), _value("r", None), _value("w", None, _INT64)]
    return _model(nodes, [_value("x", [2, 4])], outputs, stored)


def _constants() -> ModelProto:
    """Much to fold, by operators that make a large result of small operands."""
    nodes = [
        _node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0]),
        _node("Constant", [], ["i"], value_ints=[2, 3]),
        _node("Constant", [], ["one"], value_int=1),
        _node("ConstantOfShape", ["i"], ["z"]),
        _node("Expand", ["f", "i"], ["e"]),
        _node("MatMul", ["column", "row"], ["mm"]),
        _node("Pad", ["e", "pads"], ["p"]),
        _node("OneHot", ["i", "depth", "values"], ["o"]),
        _node("Resize", ["image", "", "scales"], ["r"], mode="nearest"),
        _node("Einsum", ["f", "f"], ["s"], equation="i,j->ij"),
        _node("EyeLike", ["z"], ["eye"], dtype=_FLOAT),
        _node("HannWindow", ["depth"], ["hann"]),
        _node("Bernoulli", ["e"], ["random"]),
        _node("ReduceSum", ["p"], ["sum1"], keepdims=0),
        _node("ReduceSum", ["o"], ["sum2"], keepdims=0),
        _node("ReduceSum", ["r"], ["sum3"], keepdims=0),
        _node("Sum", ["x", "sum1", "sum2", "sum3", "s"], ["y0"]),
        _node("Add", ["y0", "mm"], ["y1"]),
        _node("ReduceMax", ["hann"], ["top"], keepdims=0),
        _node("Mul", ["y1", "top"], ["y"]),
    ]
    stored = [
        _stored("column", 3, 1), _stored("row", 1, 3), _array("pads", [1, 1, 1, 1]),
        _array("depth", 5), _array("values", [0.0, 1.0], np.float32), _stored("image", 1, 1, 2, 2),
        _array("scales", [1, 1, 2, 2], np.float32),
    ]  # fmt: skip
    return _model(nodes, [_value("x", [3, 3])], [_value("y", None)], stored)


def _external() -> Sample:
    weights = np.arange(16 * 8 + 8, dtype=np.float32)
    nodes = [_node("MatMul", ["x", "w"], ["m"]), _node("Add", ["m", "b"], ["y"])]
    model = _model(nodes, [_value("x", [1, 16])], [_value("y", None)])
    for name, dims, offset, length in (("w", [16, 8], 0, 512), ("b", [8], 512, 32)):
        tensor = model.graph.initializer.add(name=name, dims=dims, data_type=_FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "ext.bin"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return Sample(model.SerializeToString(), {"ext.bin": weights.tobytes()})
