"""Operators on quantised tensors with scales of their own: `QLinear*` and `QGemm`.

Each becomes the float operator between `relax.dequantize` and `relax.quantize`, the
canonical form that the integer passes lower. Inputs and outputs keep their codes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    reshape,
    static_shape,
    transpose,
)
from tinsmith.compiler.frontends.onnx.converters.quantization import Scaling, codes_dtype, scaling


class Operands:
    """The inputs of one node, three by three: codes, scale, zero point."""

    def __init__(self, bb: relax.BlockBuilder, inputs: Any, attr: Any) -> None:
        self.bb, self.inputs, self.attr = bb, inputs, attr

    def scaling(self, position: int, what: str, axis: int = 0) -> Scaling:
        """What the codes at `position` mean, by the scale and zero point behind them."""
        codes = self.inputs[position]
        if codes is None:
            raise ValueError(f"{what} is missing")
        dtype = codes_dtype(codes, self.attr, position)
        scale, zero_point = self._scale(position + 1), self.inputs[position + 2]
        return scaling(self.bb, static_shape(codes), scale, zero_point, dtype, axis=axis, what=what)

    def _scale(self, position: int) -> relax.Expr | None:
        """The scale at `position` as float32: what is between the codes is computed in that."""
        scale = self.inputs[position]
        if scale is None or dtype_of(scale) == "float32":
            return scale
        known = as_numpy(scale)
        if known is not None:
            return constant(known.astype(np.float32))
        return self.bb.emit(relax.op.astype(scale, "float32"))

    def values(self, position: int, what: str, axis: int = 0) -> relax.Expr:
        """The dequantised tensor whose codes are at `position`."""
        return self.scaling(position, what, axis).dequantized(self.bb, self.inputs[position])

    def result(self, values: relax.Expr, position: int, like: int = 0) -> relax.Expr:
        """The codes of `values` by the scale and zero point at `position`.

        Without a zero point they have the dtype of the input at `like`.
        """
        scale, zero_point = self._scale(position), self.inputs[position + 1]
        source, where = (
            (self.inputs[like], like) if zero_point is None else (zero_point, position + 1)
        )
        values = self.bb.emit(self.bb.normalize(values))
        dtype = codes_dtype(source, self.attr, where)
        meaning = scaling(
            self.bb, static_shape(values), scale, zero_point, dtype, what="the result"
        )
        return meaning.quantized(self.bb, values)


def accumulator_bias(
    bb: relax.BlockBuilder,
    bias: relax.Expr,
    data: relax.Expr,
    weights: relax.Expr,
    channels: int,
) -> relax.Expr:
    """The values of an int32 `bias` in units of the product of two scales."""
    count = int(np.prod(static_shape(bias)))
    if dtype_of(bias) != "int32" or count != channels:
        raise ValueError(
            f"the bias has {count} elements of {dtype_of(bias)}, the result {channels} channels, "
            "for each of which it takes an int32"
        )
    bias = reshape(bb, bias, (channels,))
    known = [as_numpy(expr) for expr in (bias, data, weights)]
    codes, left, right = known
    if codes is None or left is None or right is None:
        unit = relax.op.multiply(data, weights)
        return bb.emit(relax.op.multiply(relax.op.astype(bias, "float32"), unit))
    unit = left.reshape(()) * right.astype(np.float32)
    return constant(codes.astype(np.float32) * unit)


class QLinearConv(OnnxOpConverter):
    """Convolution; the bias is in units of the input's scale times the weight's."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        last = bool(attr.pop("channels_last", 0))
        nodes = Operands(bb, inputs, attr)
        data = nodes.values(0, "the input")
        weights = nodes.scaling(3, "the weight")
        bias = inputs[8]
        if bias is not None:
            input_scale = nodes.scaling(0, "the input").scale
            channels = static_shape(inputs[3])[0]
            bias = accumulator_bias(bb, bias, input_scale, weights.scale, channels)
        rank = len(static_shape(data))
        operands = [
            _channels_first(bb, data, rank) if last else data,
            weights.dequantized(bb, inputs[3]),
            bias,
        ]
        converter = onnx_frontend.Conv.get_converter(11)
        result = bb.emit(bb.normalize(converter(bb, operands, attr, params)))
        if last:
            result = _channels_last(bb, result, rank)
        return nodes.result(result, 6)


class QLinearMatMul(OnnxOpConverter):
    """Matrix product; scales for each row of the left or column of the right operand."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        left = nodes.values(0, "the left operand", axis=-2 if _rank(inputs[0]) > 1 else 0)
        right = nodes.values(3, "the right operand", axis=-1)
        return nodes.result(relax.op.matmul(left, right), 6)


class QGemm(OnnxOpConverter):
    """`alpha * A @ B + C`, float if the result has no scale; `C` is in units of the product."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        transposed = bool(attr.get("transB", 0))
        left = nodes.values(0, "the left operand")
        meaning = nodes.scaling(3, "the right operand", axis=0 if transposed else 1)
        right = meaning.dequantized(bb, inputs[3])
        if attr.get("transA", 0):
            left = transpose(bb, left, (1, 0))
        if transposed:
            right = transpose(bb, right, (1, 0))
        result = bb.emit(relax.op.matmul(left, right))
        if inputs[6] is not None:
            scale = nodes.scaling(0, "the left operand").scale
            channels = static_shape(result)[-1]
            bias = accumulator_bias(bb, inputs[6], scale, meaning.scale, channels)
            result = bb.emit(relax.op.add(result, bias))
        if attr.get("alpha", 1.0) != 1.0:
            result = bb.emit(relax.op.multiply(result, relax.const(attr["alpha"], "float32")))
        return result if inputs[7] is None else nodes.result(result, 7)


class _QLinearBinary(OnnxOpConverter):
    """An elementwise operator of two broadcast tensors."""

    operator: Callable[[relax.Expr, relax.Expr], relax.Expr]

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        left, right = nodes.values(0, "the left operand"), nodes.values(3, "the right operand")
        return nodes.result(cls.operator(left, right), 6)


class QLinearAdd(_QLinearBinary):
    """Sum."""

    operator = staticmethod(relax.op.add)


class QLinearMul(_QLinearBinary):
    """Product, element by element."""

    operator = staticmethod(relax.op.multiply)


class _QLinearUnary(OnnxOpConverter):
    """An operator of one tensor, whose result has a scale of its own."""

    @classmethod
    @abstractmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        """The float result."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        return nodes.result(cls.compute(bb, nodes.values(0, "the input"), attr), 3)


class QLinearSigmoid(_QLinearUnary):
    """1 / (1 + e^-x)"""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        return relax.op.sigmoid(values)


class QLinearLeakyRelu(_QLinearUnary):
    """x, or `alpha * x` below zero."""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        return relax.op.nn.leakyrelu(values, attr.get("alpha", 0.01))


class QLinearSoftmax(_QLinearUnary):
    """Softmax as the standard's opset of the node's attribute defines it."""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        version = attr.get("opset", 13)
        default = {"axis": -1 if version >= 13 else 1}
        converter = onnx_frontend.Softmax.get_converter(version)
        return converter(bb, [values], {**default, **attr}, [])


class QLinearReduceMean(_QLinearUnary):
    """Mean over axes, all of them by default."""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        axes = attr.get("axes") or None
        return relax.op.mean(
            values, None if axes is None else list(axes), keepdims=bool(attr.get("keepdims", 1))
        )


class QLinearGlobalAveragePool(_QLinearUnary):
    """Mean over the image."""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        first = 1 if attr.get("channels_last", 0) else 2
        return relax.op.mean(values, list(range(first, first + _rank(values) - 2)), keepdims=True)


class QLinearAveragePool(_QLinearUnary):
    """Mean over a window."""

    @classmethod
    def compute(cls, bb: relax.BlockBuilder, values: relax.Expr, attr: Any) -> relax.Expr:
        last, rank = bool(attr.pop("channels_last", 0)), _rank(values)
        data = _channels_first(bb, values, rank) if last else values
        pooled = onnx_frontend.AveragePool.get_converter(11)(bb, [data], attr, [])
        pooled = bb.emit(bb.normalize(pooled))
        return _channels_last(bb, pooled, rank) if last else pooled


class QLinearConcat(OnnxOpConverter):
    """Tensors of different scales joined along an axis."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        count = len(attr["tvm_custom"]["dtypes"])
        if count < 5 or count % 3 != 2:
            raise ValueError(f"{count} inputs are not two for the result and three for each part")
        parts = [nodes.values(position, f"part {position // 3}") for position in range(2, count, 3)]
        return nodes.result(relax.op.concat(parts, axis=attr.get("axis", 0)), 0, like=2)


class QLinearWhere(OnnxOpConverter):
    """Elements of one tensor or the other, by a condition."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        nodes = Operands(bb, inputs, attr)
        chosen, other = nodes.values(1, "the first choice"), nodes.values(4, "the second choice")
        return nodes.result(relax.op.where(inputs[0], chosen, other), 7, like=1)


def _rank(expr: relax.Expr) -> int:
    return len(static_shape(expr))


def _channels_first(bb: relax.BlockBuilder, x: relax.Expr, rank: int) -> relax.Expr:
    return transpose(bb, x, (0, rank - 1, *range(1, rank - 1)))


def _channels_last(bb: relax.BlockBuilder, x: relax.Expr, rank: int) -> relax.Expr:
    return transpose(bb, x, (0, *range(2, rank), 1))
