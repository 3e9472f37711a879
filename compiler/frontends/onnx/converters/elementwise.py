"""Elementwise operators whose special cases TVM's converters miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    COMPUTABLE_DTYPES,
    as_numpy,
    constant,
    dtype_of,
    static_shape,
)


class Cast(OnnxOpConverter):
    """Conversion to a dtype that can be computed with; ValueError names any other."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(attr["to"]))
        return _converted(inputs[0], dtype)


class CastLike(OnnxOpConverter):
    """Conversion to the dtype of another tensor."""

    @classmethod
    def _impl_v15(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _converted(inputs[0], dtype_of(inputs[1]))


def _converted(x: relax.Expr, dtype: str) -> relax.Expr:
    if dtype not in COMPUTABLE_DTYPES:
        raise ValueError(f"conversion to {dtype} is not supported")
    return relax.op.astype(x, dtype)


class Pow(OnnxOpConverter):
    """Power; the exponent may be of another dtype than the base, whose dtype the result has."""

    @classmethod
    def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        base, exponent = inputs[0], inputs[1]
        dtype, other = dtype_of(base), dtype_of(exponent)
        whole = not dtype.startswith(("float", "bfloat"))
        if whole and not other.startswith(("float", "bfloat")):
            return _whole_power(bb, base, exponent)
        if dtype == other:
            return relax.op.power(base, exponent)
        if dtype.startswith("float"):
            return relax.op.power(base, relax.op.astype(exponent, dtype))
        # Integers to a fractional power are computed as floats.
        wide = other if other.startswith("float") else "float64"
        power = relax.op.power(relax.op.astype(base, wide), relax.op.astype(exponent, wide))
        return relax.op.astype(power, dtype)


def _whole_power(bb: relax.BlockBuilder, base: relax.Expr, exponent: relax.Expr) -> relax.Expr:
    """An integer to an integer power, by squaring; below zero, all but 1 and -1 come to nothing."""
    dtype = dtype_of(exponent)
    zero, one = relax.const(0, dtype), relax.const(1, dtype)
    result = bb.emit(
        relax.op.add(
            relax.op.multiply(base, relax.const(0, dtype_of(base))),
            relax.const(1, dtype_of(base)),
        )
    )
    known = as_numpy(exponent)
    largest = 63 if known is None else int(np.abs(known.astype(np.int64)).max(initial=0))
    # More than 63 factors fit into no integer, unless they are 0, 1 or -1.
    signed = dtype.startswith("int")
    left = bb.emit(relax.op.abs(exponent)) if signed else exponent
    square = base
    for step in range(max(min(largest, 63).bit_length(), 1)):
        odd = relax.op.equal(relax.op.floor_mod(left, relax.const(2, dtype)), one)
        result = bb.emit(relax.op.where(odd, relax.op.multiply(result, square), result))
        if largest >> (step + 1):
            left = bb.emit(relax.op.floor_divide(left, relax.const(2, dtype)))
            square = bb.emit(relax.op.multiply(square, square))
    if not signed or (known is not None and (known >= 0).all()):
        return result
    unit = relax.op.equal(relax.op.abs(base), relax.const(1, dtype_of(base)))
    gone = relax.op.logical_and(relax.op.less(exponent, zero), relax.op.logical_not(unit))
    return relax.op.where(gone, relax.const(0, dtype_of(base)), result)


class Equal(OnnxOpConverter):
    """Whether two values are the same; of truth values, which LLVM cannot compare, too."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        if dtype_of(inputs[0]) == "bool":
            return relax.op.logical_not(bb.emit(relax.op.logical_xor(inputs[0], inputs[1])))
        return onnx_frontend.Equal._impl_v13(bb, inputs, attr, params)


class IsInf(OnnxOpConverter):
    """Whether a value is infinite, of the signs asked for."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        positive, negative = attr.get("detect_positive", 1), attr.get("detect_negative", 1)
        infinite = relax.op.isinf(x)
        zero = relax.const(0.0, dtype_of(x))
        if positive and negative:
            return infinite
        if not positive and not negative:
            return constant(np.zeros(static_shape(x), bool))
        sign = relax.op.greater(x, zero) if positive else relax.op.less(x, zero)
        return relax.op.logical_and(infinite, sign)


def _softplus(x: relax.Expr) -> relax.Expr:
    """log(1 + e^x), without overflow for large x."""
    zero, one = (relax.const(value, dtype_of(x)) for value in (0.0, 1.0))
    rest = relax.op.log(relax.op.add(one, relax.op.exp(relax.op.negative(relax.op.abs(x)))))
    return relax.op.add(relax.op.maximum(x, zero), rest)


class Softplus(OnnxOpConverter):
    """log(1 + e^x)"""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _softplus(inputs[0])


class Mish(OnnxOpConverter):
    """x * tanh(log(1 + e^x))

    With a = e^-|x| the hyperbolic tangent is n / (n + d), where n = 1 + 2a and d = 2a^2 for
    x >= 0, and n = a(a + 2) and d = 2 below: one exponential, no overflow, no cancellation.
    """

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        zero, one, two = (relax.const(value, dtype_of(x)) for value in (0.0, 1.0, 2.0))
        below = bb.emit(relax.op.less(x, zero))
        a = bb.emit(relax.op.exp(relax.op.negative(relax.op.abs(x))))
        twice = relax.op.multiply(two, a)
        n = bb.emit(
            relax.op.where(
                below, relax.op.multiply(a, relax.op.add(a, two)), relax.op.add(one, twice)
            )
        )
        d = relax.op.where(below, two, relax.op.multiply(twice, a))
        return relax.op.multiply(x, relax.op.divide(n, relax.op.add(n, d)))


class Dropout(OnnxOpConverter):
    """Nothing at inference; the mask says that every element was kept."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        training, ratio = as_numpy(inputs[2]), as_numpy(inputs[1])
        if inputs[2] is not None and (training is None or bool(training.reshape(-1)[0])):
            rate = 0.5 if ratio is None else float(ratio.reshape(-1)[0])
            if training is None or rate != 0.0:
                raise ValueError("training mode drops values at random; export for inference")
        mask = constant(np.ones(static_shape(x), bool))
        return relax.Tuple([x, mask]) if attr["tvm_custom"]["num_outputs"] > 1 else x
