"""Normalisations of float64, for which TVM has no operators: spelled out.

Other dtypes keep TVM's own converters, because passes and schedules know their operators.
"""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from tinsmith.compiler.frontends.onnx.converters.constants import dtype_of, static_shape


def normalized(bb: relax.BlockBuilder, x: relax.Expr, axes: list[int], epsilon: float) -> Any:
    """`(x - mean) / sqrt(variance + epsilon)` over `axes`."""
    mean = bb.emit(relax.op.mean(x, axes, keepdims=True))
    centred = bb.emit(relax.op.subtract(x, mean))
    squares = relax.op.multiply(centred, centred)
    variance = bb.emit(relax.op.mean(squares, axes, keepdims=True))
    shifted = relax.op.add(variance, relax.const(epsilon, dtype_of(x)))
    return bb.emit(relax.op.divide(centred, relax.op.sqrt(shifted)))


class GroupNormalization(onnx_frontend.GroupNormalization):
    """Scale and bias are one for each group (opset 18) or each channel (opset 21)."""

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        if dtype_of(inputs[0]) != "float64":
            return super()._impl_v18(bb, inputs, attr, params)
        return cls._of_doubles(bb, inputs, attr)

    @classmethod
    def _impl_v21(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        if dtype_of(inputs[0]) != "float64":
            return super()._impl_v21(bb, inputs, attr, params)
        return cls._of_doubles(bb, inputs, attr)

    @classmethod
    def _of_doubles(cls, bb: Any, inputs: Any, attr: Any) -> relax.Expr:
        x, scale, bias = inputs[:3]
        batch, channels, *spatial = static_shape(x)
        groups = attr["num_groups"]
        split = (batch, groups, channels // groups, *spatial)
        grouped = bb.emit(relax.op.reshape(x, split))
        y = normalized(bb, grouped, list(range(2, len(split))), attr.get("epsilon", 1e-5))

        def along(vector: relax.Expr) -> relax.Expr:
            size = static_shape(vector)[0]
            rows = (groups, 1) if size == groups else (groups, channels // groups)
            return relax.op.reshape(vector, (1, *rows, *[1] * len(spatial)))

        scaled = bb.emit(relax.op.add(relax.op.multiply(y, along(scale)), along(bias)))
        return relax.op.reshape(scaled, (batch, channels, *spatial))


class MeanVarianceNormalization(onnx_frontend.MeanVarianceNormalization):
    """`(x - mean) / standard deviation` over `axes`, all but the channels by default."""

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        if dtype_of(inputs[0]) != "float64":
            return super()._impl_v9(bb, inputs, attr, params)
        return normalized(bb, inputs[0], list(attr.get("axes", (0, 2, 3))), 0.0)


class LRN(onnx_frontend.LocalResponseNormalization):
    """x / (bias + alpha / size * squares of neighbouring channels) ^ beta.

    TVM has an operator for windows of an odd size, which have a middle.
    """

    @classmethod
    def _impl_v13(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        dtype, size, rank = dtype_of(x), attr["size"], len(static_shape(x))
        if dtype != "float64" and size % 2:
            return super()._impl_v13(bb, inputs, attr, params)
        before, after = (size - 1) // 2, size // 2
        widths = [0, 0, before, after, *[0] * (2 * rank - 4)]
        padded = bb.emit(relax.op.nn.pad(bb.emit(relax.op.multiply(x, x)), widths))
        channels = static_shape(x)[1]
        total = None
        for first in range(size):
            part = relax.op.strided_slice(padded, [1], [first], [first + channels])
            total = bb.emit(part if total is None else relax.op.add(total, part))
        alpha, bias, beta = (
            relax.const(value, dtype)
            for value in (
                attr.get("alpha", 1e-4) / size,
                attr.get("bias", 1.0),
                attr.get("beta", 0.75),
            )
        )
        scale = bb.emit(relax.op.add(relax.op.multiply(total, alpha), bias))
        return relax.op.divide(x, relax.op.power(scale, beta))
