"""Integer products whose scales, or zero points, are known at run time.

The canonical form is a product of int32 operands, each the difference of codes and zero
point: `matmul(astype(a, int32) - za, astype(b, int32) - zb)`. Every backend computes it as
it stands; the integer passes multiply the codes themselves instead.
"""

from __future__ import annotations

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
)
from tinsmith.compiler.frontends.onnx.converters.quantization import scaling

_BYTES = frozenset({"int8", "uint8"})


def centred(
    bb: relax.BlockBuilder,
    codes: relax.Expr,
    zero_point: relax.Expr | None,
    axis: int,
    what: str,
) -> relax.Expr:
    """`codes - zero_point` in int32; a vector of zero points lies along `axis`.

    Raises ValueError for codes of other dtypes than 8-bit integers, and for a zero point of
    another dtype or of a shape that does not fit.
    """
    shape = static_shape(codes)
    if dtype_of(codes) not in _BYTES:
        raise ValueError(f"{what} is of {dtype_of(codes)}, not of 8-bit integers")
    codes_known = as_numpy(codes)
    wide = (
        bb.emit(relax.op.astype(codes, "int32"))
        if codes_known is None
        else constant(codes_known.astype("int32"))
    )
    if zero_point is None:
        return wide
    if dtype_of(zero_point) != dtype_of(codes):
        raise ValueError(
            f"{what} is of {dtype_of(codes)}, its zero point of {dtype_of(zero_point)}"
        )
    given = static_shape(zero_point)
    count = int(np.prod(given))
    if count == 1:
        given = (1,) * len(shape)
    elif len(given) == 1 and len(shape) > 1:
        given = tuple(count if a == axis % len(shape) else 1 for a in range(len(shape)))
    inner = {a for a in range(len(shape)) if a != axis % len(shape)} - set(range(len(shape) - 2))
    fits = len(given) == len(shape) and all(
        size in (1, extent) and not (a in inner and size > 1)
        for a, (size, extent) in enumerate(zip(given, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"{what} has the shape {list(shape)}, its zero point {list(given)}")
    offset = reshape(bb, zero_point, given)
    known = as_numpy(offset)
    if known is not None:
        if not known.any():
            return wide
        offset = constant(known.astype("int32"))
        if codes_known is not None:
            return constant(codes_known.astype("int32") - known.astype("int32"))
    else:
        offset = bb.emit(relax.op.astype(offset, "int32"))
    return bb.emit(relax.op.subtract(wide, offset))


def integer_matmul(
    bb: relax.BlockBuilder,
    left: relax.Expr,
    right: relax.Expr,
    left_zero: relax.Expr | None,
    right_zero: relax.Expr | None,
) -> relax.Expr:
    """The int32 product; zero points for each row of the left, each column of the right."""
    a = centred(bb, left, left_zero, -2, "the left operand")
    b = centred(bb, right, right_zero, -1, "the right operand")
    return bb.emit(relax.op.matmul(a, b, out_dtype="int32"))


class MatMulInteger(OnnxOpConverter):
    """int32 matrix product of 8-bit codes."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return integer_matmul(bb, inputs[0], inputs[1], inputs[2], inputs[3])


class ConvInteger(OnnxOpConverter):
    """int32 convolution of 8-bit codes; outside the image they are the zero point."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        data = centred(bb, inputs[0], inputs[2], 1, "the input")
        weights = centred(bb, inputs[1], inputs[3], 0, "the weight")
        converter = onnx_frontend.Conv.get_converter(11)
        return converter(bb, [data, weights, None], attr, params)


def dynamic_quantization(
    bb: relax.BlockBuilder, values: relax.Expr
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """Codes (uint8), scale (float32) and zero point (uint8) from the range of `values`."""
    zero, steps = relax.const(0.0, "float32"), relax.const(255.0, "float32")
    high = relax.op.maximum(relax.op.max(values), zero)
    low = bb.emit(relax.op.minimum(relax.op.min(values), zero))
    width = bb.emit(relax.op.subtract(high, low))
    # Nothing but zeros has a range of zero; any scale represents them.
    empty = relax.op.equal(width, zero)
    one = relax.const(1.0, "float32")
    scale = bb.emit(relax.op.where(empty, one, relax.op.divide(width, steps)))
    offset = relax.op.divide(relax.op.negative(low), scale)
    offset = relax.op.round(relax.op.clip(offset, 0.0, 255.0))
    zero_point = bb.emit(relax.op.astype(offset, "uint8"))
    codes = bb.emit(relax.op.quantize(values, scale, zero_point, -1, "uint8"))
    return codes, scale, zero_point


class DynamicQuantizeLinear(OnnxOpConverter):
    """Codes, scale and zero point of a tensor, from its range, zero included."""

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return relax.Tuple(list(dynamic_quantization(bb, inputs[0])))


def _scaled(
    bb: relax.BlockBuilder,
    product: relax.Expr,
    left: relax.Expr,
    right: relax.Expr,
    bias: relax.Expr | None,
) -> relax.Expr:
    """An int32 product in units of two scales as float32, with a bias."""
    unit = bb.emit(relax.op.multiply(left, right))
    values = bb.emit(relax.op.astype(product, "float32"))
    values = bb.emit(relax.op.multiply(values, unit))
    return values if bias is None else bb.emit(relax.op.add(values, bias))


def _column_scale(
    bb: relax.BlockBuilder, matrix: relax.Expr, scale: relax.Expr, zero_point: relax.Expr | None
) -> relax.Expr:
    """The checked scale of a right operand: one number or one for each column."""
    shape = static_shape(matrix)
    meaning = scaling(
        bb, shape, scale, zero_point, dtype_of(matrix), axis=-1, what="the right operand"
    )
    return meaning.scale


class MatMulIntegerToFloat(OnnxOpConverter):
    """Product of codes of given scales, as floats, with a bias."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        left, right = inputs[0], inputs[1]
        left_zero, right_zero = inputs[4], inputs[5]
        shape, dtype = static_shape(left), dtype_of(left)
        meaning = scaling(bb, shape, inputs[2], left_zero, dtype, axis=-2, what="the left operand")
        left_scale = meaning.scale
        if static_shape(left_scale):
            left_scale = reshape(bb, left_scale, (shape[-2], 1))
        right_scale = _column_scale(bb, right, inputs[3], right_zero)
        product = integer_matmul(bb, left, right, left_zero, right_zero)
        return _scaled(bb, product, left_scale, right_scale, inputs[6])


class DynamicQuantizeMatMul(OnnxOpConverter):
    """Product of a float tensor, quantised by its range, and codes, as floats, with a bias."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        codes, scale, zero_point = dynamic_quantization(bb, inputs[0])
        right_scale = _column_scale(bb, inputs[1], inputs[2], inputs[3])
        product = integer_matmul(bb, codes, inputs[1], zero_point, inputs[3])
        return _scaled(bb, product, scale, right_scale, inputs[4])
