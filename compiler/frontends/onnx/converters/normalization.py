"""Normalisations: those that TVM lacks, and the cases that it gets wrong.

Kept as TVM's own operators where possible, because passes and schedules know those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import constant, dtype_of, static_shape


def _moments(
    bb: relax.BlockBuilder, x: relax.Expr, axes: Sequence[int]
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """`x` minus its mean over `axes`, the mean, and the (biased) variance."""
    mean = bb.emit(relax.op.mean(x, list(axes), keepdims=True))
    centred = bb.emit(relax.op.subtract(x, mean))
    variance = bb.emit(
        relax.op.mean(relax.op.multiply(centred, centred), list(axes), keepdims=True)
    )
    return centred, mean, variance


class LayerNormalization(OnnxOpConverter):
    """Normalisation over the axes from `axis` on, with mean and deviation if they are asked for."""

    @classmethod
    def _impl_v17(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, scale, bias = inputs[0], inputs[1], inputs[2]
        shape = static_shape(x)
        axis = attr.get("axis", -1) % len(shape)
        axes = list(range(axis, len(shape)))
        epsilon = attr.get("epsilon", 1e-5)
        whole = static_shape(scale) == shape[axis:] and dtype_of(x) != "float64"
        if attr["tvm_custom"]["num_outputs"] == 1 and whole:
            if bias is None:
                bias = constant(np.zeros(shape[axis:], dtype_of(scale)))
            return relax.op.nn.layer_norm(x, scale, bias, axes, epsilon)
        centred, mean, variance = _moments(bb, x, axes)
        inverse = bb.emit(relax.op.rsqrt(relax.op.add(variance, relax.const(epsilon, dtype_of(x)))))
        y = bb.emit(relax.op.multiply(relax.op.multiply(centred, inverse), scale))
        if bias is not None:
            y = bb.emit(relax.op.add(y, bias))
        return relax.Tuple([y, mean, inverse])


class RMSNormalization(OnnxOpConverter):
    """x / sqrt(mean(x^2) + epsilon) * scale, over the axes from `axis` on."""

    @classmethod
    def _impl_v23(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, scale = inputs[0], inputs[1]
        shape = static_shape(x)
        axis = attr.get("axis", -1) % len(shape)
        if axis == len(shape) - 1 and static_shape(scale) == shape[axis:]:
            return onnx_frontend.RMSNormalization._impl_v23(bb, inputs, attr, params)
        axes = list(range(axis, len(shape)))
        square = relax.op.mean(relax.op.multiply(x, x), axes, keepdims=True)
        epsilon = relax.const(attr.get("epsilon", 1e-5), dtype_of(x))
        inverse = relax.op.rsqrt(relax.op.add(square, epsilon))
        return relax.op.multiply(relax.op.multiply(x, inverse), scale)


class LpNormalization(OnnxOpConverter):
    """x divided by its 1- or 2-norm along one axis; a norm of zero divides by one."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, axis = inputs[0], attr.get("axis", -1)
        if attr.get("p", 2) == 1:
            norm = relax.op.sum(relax.op.abs(x), axis, keepdims=True)
        else:
            norm = relax.op.sqrt(relax.op.sum(relax.op.multiply(x, x), axis, keepdims=True))
        norm = bb.emit(norm)
        zero, one = (relax.const(value, dtype_of(x)) for value in (0.0, 1.0))
        return relax.op.divide(x, relax.op.where(relax.op.equal(norm, zero), one, norm))


class BatchNormalization(OnnxOpConverter):
    """TVM's operator; in training mode, spelled out with the statistics of the batch."""

    @classmethod
    def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        if not attr.get("training_mode", 0):
            return onnx_frontend.BatchNormalization._impl_v15(bb, inputs, attr, params)
        x, scale, bias, running_mean, running_variance = inputs[:5]
        shape = static_shape(x)
        column = (shape[1], *[1] * (len(shape) - 2))
        axes = [axis for axis in range(len(shape)) if axis != 1]
        centred, mean, variance = _moments(bb, x, axes)
        epsilon = relax.const(attr.get("epsilon", 1e-5), dtype_of(x))
        y = relax.op.multiply(centred, relax.op.rsqrt(relax.op.add(variance, epsilon)))
        y = relax.op.multiply(y, relax.op.reshape(scale, column))
        y = bb.emit(relax.op.add(y, relax.op.reshape(bias, column)))
        momentum = attr.get("momentum", 0.9)

        def blend(running: relax.Expr, current: relax.Expr) -> relax.Expr:
            dtype = dtype_of(running)
            old = relax.op.multiply(running, relax.const(momentum, dtype))
            now = relax.op.reshape(current, (shape[1],))
            return bb.emit(
                relax.op.add(old, relax.op.multiply(now, relax.const(1.0 - momentum, dtype)))
            )

        return relax.Tuple([y, blend(running_mean, mean), blend(running_variance, variance)])
