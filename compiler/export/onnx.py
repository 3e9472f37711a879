"""A Relax graph, as it was imported, as an ONNX model.

For the operators of convolutional networks and transformers in floating point; another one is
refused by name. Layouts have channels in front, as in ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax

from tinsmith.compiler.errors import ModelError
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, element_type, integers, static_shape

_OPSET = 17
_IR_VERSION = 8

# Operators that are called the same but for capitals, or nearly so.
_NAMES = {
    **{
        f"relax.{name}": name.capitalize()
        for name in (
            *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh"),
            *("erf", "exp", "floor", "log", "round", "sigmoid", "sign", "sin", "sinh", "sqrt"),
            *("tan", "tanh", "add", "where", "equal", "less", "greater"),
        )
    },
    "relax.negative": "Neg",
    "relax.subtract": "Sub",
    "relax.multiply": "Mul",
    "relax.divide": "Div",
    "relax.power": "Pow",
    "relax.maximum": "Max",
    "relax.minimum": "Min",
    "relax.matmul": "MatMul",
    "relax.logical_not": "Not",
    "relax.less_equal": "LessOrEqual",
    "relax.greater_equal": "GreaterOrEqual",
    "relax.nn.relu": "Relu",
}


def to_onnx(
    module: tvm.IRModule, input_names: Sequence[str], output_names: Sequence[str]
) -> onnx.ModelProto:
    """The model; raises ModelError, naming the operator, for a graph that cannot be written."""
    return _Writer(module, input_names, output_names).model()


class _Writer:
    """Turns bindings into nodes, one after the other."""

    def __init__(
        self, module: tvm.IRModule, input_names: Sequence[str], output_names: Sequence[str]
    ) -> None:
        self._module = module
        self._graph = Dataflow(module)
        self._parameters = self._graph.nodes[: len(module["main"].params)]
        self._names = dict(zip(self._parameters, input_names, strict=True))
        self._outputs = tuple(output_names)
        self._tuples: dict[Node, list[str]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        for node in self._graph.nodes[len(self._parameters) :]:
            self._write(node)
        body = self._module["main"].body.body
        results = self._tuples_of(body) if isinstance(body, relax.Tuple) else self._results(body)
        for (name, _), out in zip(results, self._outputs, strict=True):
            self.emit("Identity", [name], out=out)
        graph = helper.make_graph(
            self._nodes,
            "pruned",
            [_value(self._names[node], node.variable) for node in self._parameters],
            [_value(out, e) for out, (_, e) in zip(self._outputs, results, strict=True)],
            self._initializers,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        made.ir_version = _IR_VERSION
        onnx.checker.check_model(made)
        return made

    def emit(self, kind: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        """Add a node of one result; its name."""
        name = out or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def array(self, values: np.ndarray) -> str:
        """The name of a new initialiser."""
        name = f"w{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def numbers(self, values: Sequence[int]) -> str:
        """The name of a new initialiser of int64."""
        return self.array(np.array(values, np.int64))

    def name(self, expr: relax.Expr) -> str:
        """The name of an operand."""
        node = self._graph.node(expr)
        if node is not None:
            return self._names[node]
        array = constant_array(expr)
        if array is None:
            raise ModelError(f"cannot be written as ONNX: an operand {type(expr).__name__}")
        return self.array(array)

    def _write(self, node: Node) -> None:
        value: Any = node.value
        if isinstance(value, relax.TupleGetItem):
            source = self._graph.node(value.tuple_value)
            if source is None:
                raise ModelError("cannot be written as ONNX: an element of an unknown tuple")
            self._names[node] = self._tuples[source][int(value.index)]
        elif isinstance(value, relax.Tuple):
            self._tuples[node] = [self.name(field) for field in value.fields]
        elif isinstance(value, relax.Call):
            rule = _RULES.get(str(node.operator))
            if rule is None:
                raise ModelError(
                    f"{node.operator} ({node.name}) cannot be written as ONNX; "
                    "use `tinsmith compile --prune` instead"
                )
            made = rule(self, value)
            if isinstance(made, list):
                self._tuples[node] = made
            else:
                self._names[node] = made
        else:
            self._names[node] = self.name(value)

    def _results(self, body: relax.Expr) -> list[tuple[str, relax.Expr]]:
        node = self._graph.node(body)
        if node is not None and isinstance(node.value, relax.Tuple):
            return self._tuples_of(node.value)
        return [(self.name(body), body)]

    def _tuples_of(self, value: relax.Tuple) -> list[tuple[str, relax.Expr]]:
        return [(self.name(field), field) for field in value.fields]


Rule = Callable[[_Writer, Any], "str | list[str]"]


def _value(name: str, expr: relax.Expr) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(str(element_type(expr))))
    return helper.make_tensor_value_info(name, dtype, static_shape(expr))


def _same(kind: str) -> Rule:
    return lambda writer, call: writer.emit(kind, [writer.name(a) for a in call.args])


def _convolution(kind: str) -> Rule:
    def rule(writer: _Writer, call: Any) -> str:
        attrs = call.attrs
        letters = "OI" if kind == "Conv" else "IO"
        if not str(attrs.data_layout).startswith("NC") or str(attrs.kernel_layout)[:2] != letters:
            raise ModelError(f"cannot be written as ONNX: a convolution of {attrs.data_layout}")
        options: dict[str, Any] = {}
        if kind == "ConvTranspose":
            options["output_padding"] = integers(attrs.output_padding)
        return writer.emit(
            kind,
            [writer.name(argument) for argument in call.args],
            strides=integers(attrs.strides),
            pads=integers(attrs.padding),
            dilations=integers(attrs.dilation),
            group=int(attrs.groups),
            **options,
        )

    return rule


def _pool(kind: str) -> Rule:
    def rule(writer: _Writer, call: Any) -> str:
        attrs = call.attrs
        options: dict[str, Any] = {
            "kernel_shape": integers(attrs.pool_size),
            "strides": integers(attrs.strides),
            "pads": integers(attrs.padding),
            "ceil_mode": int(attrs.ceil_mode),
        }
        if kind == "MaxPool":
            options["dilations"] = integers(attrs.dilation)
        else:
            options["count_include_pad"] = int(attrs.count_include_pad)
        return writer.emit(kind, [writer.name(call.args[0])], **options)

    return rule


def _global_average(writer: _Writer, call: Any) -> str:
    if set(integers(call.attrs.output_size)) != {1}:
        raise ModelError("cannot be written as ONNX: adaptive pooling to more than one value")
    return writer.emit("GlobalAveragePool", [writer.name(call.args[0])])


def _reduction(kind: str) -> Rule:
    def rule(writer: _Writer, call: Any) -> str:
        rank = len(static_shape(call.args[0]) or ())
        axes = range(rank) if call.attrs.axis is None else integers(call.attrs.axis)
        keep = int(call.attrs.keepdims)
        operand = writer.name(call.args[0])
        if kind == "ReduceSum":
            return writer.emit(kind, [operand, writer.numbers(list(axes))], keepdims=keep)
        return writer.emit(kind, [operand], axes=list(axes), keepdims=keep)

    return rule


def _batch_norm(writer: _Writer, call: Any) -> list[str]:
    if int(call.attrs.axis) != 1:
        raise ModelError("cannot be written as ONNX: batch normalisation of the last axis")
    operands = [writer.name(argument) for argument in call.args]
    made = writer.emit("BatchNormalization", operands, epsilon=float(call.attrs.epsilon))
    return [made, *operands[3:]]


def _layer_norm(writer: _Writer, call: Any) -> str:
    rank = len(static_shape(call) or ())
    axes = sorted(axis % rank for axis in integers(call.attrs.axes))
    if axes != list(range(axes[0], rank)):
        raise ModelError("cannot be written as ONNX: layer normalisation of inner axes")
    return writer.emit(
        "LayerNormalization",
        [writer.name(argument) for argument in call.args],
        axis=axes[0],
        epsilon=float(call.attrs.epsilon),
    )


def _clip(writer: _Writer, call: Any) -> str:
    bounds = [np.array(float(bound.value), np.float32) for bound in call.args[1:3]]
    return writer.emit("Clip", [writer.name(call.args[0]), *map(writer.array, bounds)])


def _reshape(writer: _Writer, call: Any) -> str:
    shape = static_shape(call)
    if shape is None:
        raise ModelError("cannot be written as ONNX: a shape that depends on the data")
    return writer.emit("Reshape", [writer.name(call.args[0]), writer.numbers(shape)])


def _expand(writer: _Writer, call: Any) -> str:
    return writer.emit(
        "Expand", [writer.name(call.args[0]), writer.numbers(static_shape(call) or ())]
    )


def _transpose(writer: _Writer, call: Any) -> str:
    rank = len(static_shape(call) or ())
    axes = call.attrs.axes
    order = list(reversed(range(rank))) if axes is None else [a % rank for a in integers(axes)]
    return writer.emit("Transpose", [writer.name(call.args[0])], perm=order)


def _concat(writer: _Writer, call: Any) -> str:
    parts = [writer.name(field) for field in call.args[0].fields]
    return writer.emit("Concat", parts, axis=int(call.attrs.axis))


def _split(writer: _Writer, call: Any) -> list[str]:
    """By slices, each a node of one result."""
    axis = int(call.attrs.axis)
    operand = writer.name(call.args[0])
    made, begin = [], 0
    for field in call.ty.fields:
        end = begin + int(field.shape.values[axis])
        made.append(
            writer.emit("Slice", [operand, *(writer.numbers([n]) for n in (begin, end, axis))])
        )
        begin = end
    return made


def _along_axis(kind: str) -> Rule:
    return lambda writer, call: writer.emit(
        kind, [writer.name(argument) for argument in call.args], axis=int(call.attrs.axis)
    )


def _leaky_relu(writer: _Writer, call: Any) -> str:
    return writer.emit("LeakyRelu", [writer.name(call.args[0])], alpha=float(call.attrs.alpha))


def _silu(writer: _Writer, call: Any) -> str:
    operand = writer.name(call.args[0])
    return writer.emit("Mul", [operand, writer.emit("Sigmoid", [operand])])


def _gelu(writer: _Writer, call: Any) -> str:
    """Spelled out: the operator is younger than the opset."""
    operand = writer.name(call.args[0])
    half, one, root = (writer.array(np.array(n, np.float32)) for n in (0.5, 1.0, math.sqrt(2)))
    erf = writer.emit("Erf", [writer.emit("Div", [operand, root])])
    return writer.emit("Mul", [writer.emit("Mul", [operand, writer.emit("Add", [erf, one])]), half])


def _square(writer: _Writer, call: Any) -> str:
    operand = writer.name(call.args[0])
    return writer.emit("Mul", [operand, operand])


def _rsqrt(writer: _Writer, call: Any) -> str:
    return writer.emit("Reciprocal", [writer.emit("Sqrt", [writer.name(call.args[0])])])


def _cast(writer: _Writer, call: Any) -> str:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(str(call.attrs.dtype)))
    return writer.emit("Cast", [writer.name(call.args[0])], to=dtype)


_RULES: dict[str, Rule] = {
    **{name: _same(kind) for name, kind in _NAMES.items()},
    **{f"relax.nn.conv{rank}d": _convolution("Conv") for rank in (1, 2, 3)},
    **{f"relax.nn.conv{rank}d_transpose": _convolution("ConvTranspose") for rank in (1, 2)},
    **{f"relax.nn.max_pool{rank}d": _pool("MaxPool") for rank in (1, 2, 3)},
    **{f"relax.nn.avg_pool{rank}d": _pool("AveragePool") for rank in (1, 2, 3)},
    "relax.nn.adaptive_avg_pool2d": _global_average,
    "relax.mean": _reduction("ReduceMean"),
    "relax.sum": _reduction("ReduceSum"),
    "relax.max": _reduction("ReduceMax"),
    "relax.min": _reduction("ReduceMin"),
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.clip": _clip,
    **dict.fromkeys(
        (
            *("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims"),
            "relax.nn.batch_flatten",
        ),
        _reshape,
    ),
    "relax.broadcast_to": _expand,
    "relax.permute_dims": _transpose,
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.take": _along_axis("Gather"),
    "relax.nn.softmax": _along_axis("Softmax"),
    "relax.nn.log_softmax": _along_axis("LogSoftmax"),
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.silu": _silu,
    "relax.nn.gelu": _gelu,
    "relax.square": _square,
    "relax.rsqrt": _rsqrt,
    "relax.astype": _cast,
}
