"""Activation functions that TVM's converters compute in float32 only, or wrongly for NaN."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import dtype_of, static_shape


def _number(value: float, like: relax.Expr) -> relax.Expr:
    return relax.const(float(value), dtype_of(like))


def _elu(x: relax.Expr, alpha: float, width: float = 1.0) -> relax.Expr:
    """alpha * (e^(x / width) - 1) for x < 0, else x; NaN, which is not below 0, passes."""
    power = relax.op.exp(relax.op.divide(x, _number(width, x)) if width != 1.0 else x)
    below = relax.op.multiply(_number(alpha, x), relax.op.subtract(power, _number(1.0, x)))
    return relax.op.where(relax.op.less(x, _number(0.0, x)), below, x)


class Celu(OnnxOpConverter):
    """max(0, x) + min(0, alpha * (e^(x / alpha) - 1))"""

    @classmethod
    def _impl_v12(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        alpha = float(attr.get("alpha", 1.0))
        return _elu(inputs[0], alpha, alpha)


class Elu(OnnxOpConverter):
    """alpha * (e^x - 1) for x < 0, else x"""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _elu(inputs[0], float(attr.get("alpha", 1.0)))


class Selu(OnnxOpConverter):
    """gamma * (alpha * (e^x - 1) for x < 0, else x)"""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        gamma = _number(attr.get("gamma", 1.05070102214813232421875), x)
        alpha = float(attr.get("alpha", 1.67326319217681884765625))
        return relax.op.multiply(gamma, _elu(x, alpha))


class LeakyRelu(OnnxOpConverter):
    """x for x >= 0, else alpha * x: of an alpha of 0 and minus infinity, NaN."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, alpha = inputs[0], float(attr.get("alpha", 0.01))
        if alpha:
            return relax.op.nn.leakyrelu(x, alpha)
        below = relax.op.multiply(x, _number(0.0, x))
        return relax.op.where(relax.op.less(x, _number(0.0, x)), below, x)


class ThresholdedRelu(OnnxOpConverter):
    """x for x > alpha, else 0: for NaN too, which is not above alpha."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        above = relax.op.greater(x, _number(attr.get("alpha", 1.0), x))
        return relax.op.where(above, x, _number(0.0, x))


class PRelu(onnx_frontend.PRelu):
    """x for x >= 0, else slope * x; the slope broadcasts to x, and does not widen it."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, slope = (static_shape(inputs[i]) for i in range(2))
        aligned = x[len(x) - len(slope) :]
        if len(slope) > len(x) or any(
            size not in (1, wanted) for size, wanted in zip(slope, aligned, strict=True)
        ):
            raise ValueError(f"the slope of shape {slope} does not broadcast to {x}")
        return super()._impl_v1(bb, inputs, attr, params)
