"""Quantise and dequantise as elementwise kernels, which fuse with what is around them.

The arithmetic is float32, rounding to nearest and ties to even:

    quantize(x)   = clip(rint(x * (1 / scale)) + zero_point, smallest, largest)
    dequantize(q) = float(q - zero_point) * scale

The reciprocal is rounded to float32 once, here. Saturation comes before rounding, which
is the same because the bounds are integers. Adding 1.5 * 2^23 then rounds by itself, and
leaves the integer in the lowest bits of the float (TVM keeps loops with `nearbyint` scalar).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Expr, GenericConst
from tvm.relax import BlockBuilder, Call

_NUMPY_LIMITS = {name: np.iinfo(name) for name in ("int8", "uint8", "int16", "uint16", "int32")}


# Up to 2^22, a float32 to which 1.5 * 2^23 is added has a last place of 1.
ROUNDING_ADDEND = np.float32(1.5 * 2**23)
_MOST_ADDED = 2.0**22


def quantization_legalizers() -> dict[str, Callable[[BlockBuilder, Call], Expr]]:
    """Legalisers for `relax.quantize` and `relax.dequantize`, by operator name."""
    return {"relax.quantize": _quantize, "relax.dequantize": _dequantize}


def _constant(expression: Expr) -> np.ndarray | None:
    return np.asarray(expression.value.numpy()) if isinstance(expression, GenericConst) else None


def _default(bb: BlockBuilder, call: Call) -> Expr:
    return call.op.get_attr("FLegalize")(bb, call)


def _quantize(bb: BlockBuilder, call: Call) -> Expr:
    scale, zero_point = _constant(call.args[1]), _constant(call.args[2])
    limits = _NUMPY_LIMITS.get(str(call.attrs.out_dtype))
    data_type = str(call.args[0].ty.dtype)
    if scale is None or zero_point is None or limits is None or data_type != "float32":
        return _default(bb, call)
    inverse = np.float32(1) / scale.astype(np.float32)
    offset = zero_point.astype(np.float32)
    # float32 has no 2^31 - 1; the largest below it converts without overflow.
    low, high = np.float32(limits.min), np.float32(limits.max)
    high = high if float(high) <= limits.max else np.nextafter(high, np.float32(0))
    by_adding = max(np.abs(low - offset).max(), np.abs(high - offset).max()) <= _MOST_ADDED

    def define(data: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def element(*index: Expr) -> Expr:
            factor, shift = _at(parameters, (inverse, offset), index, int(call.attrs.axis))
            scaled = data(*index) * factor
            if by_adding:
                bounded = te.max(te.min(scaled, _f32(high) - shift), _f32(low) - shift)
                bits = tirx.reinterpret("int32", bounded + _f32(ROUNDING_ADDEND))
                codes = bits - int(ROUNDING_ADDEND.view(np.int32)) + shift.astype("int32")
            else:
                rounded = tirx.nearbyint(scaled) + shift
                codes = te.max(te.min(rounded, _f32(high)), _f32(low))
            return codes.astype(str(call.attrs.out_dtype))

        return te.compute(data.shape, element, name="quantize")

    return bb.call_te(
        define, call.args[0], *_vectors(inverse, offset), primfunc_name_hint="quantize"
    )


def _dequantize(bb: BlockBuilder, call: Call) -> Expr:
    scale, zero_point = _constant(call.args[1]), _constant(call.args[2])
    if scale is None or zero_point is None or str(call.attrs.out_dtype) != "float32":
        return _default(bb, call)
    factors, offset = scale.astype(np.float32), zero_point.astype(np.int32)

    def define(data: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def element(*index: Expr) -> Expr:
            factor, shift = _at(parameters, (factors, offset), index, int(call.attrs.axis))
            value = data(*index).astype("int32")
            if not (offset.size == 1 and int(offset.reshape(())) == 0):
                value = value - shift
            return value.astype("float32") * factor

        return te.compute(data.shape, element, name="dequantize")

    return bb.call_te(
        define, call.args[0], *_vectors(factors, offset), primfunc_name_hint="dequantize"
    )


def _f32(value: np.float32) -> Expr:
    return tvm.tirx.const(float(value), "float32")


def _vectors(*arrays: np.ndarray) -> list[Expr]:
    """Parameters that differ along an axis are operands; numbers go into the code."""
    return [relax.const(array.reshape(-1), str(array.dtype)) for array in arrays if array.size > 1]


def _at(
    parameters: tuple[te.Tensor, ...],
    arrays: tuple[np.ndarray, np.ndarray],
    index: tuple[Expr, ...],
    axis: int,
) -> list[Expr]:
    """Both parameters for the element at `index`."""
    vectors = iter(parameters)
    return [
        next(vectors)(index[axis])
        if array.size > 1
        else tvm.tirx.const(array.reshape(()).item(), str(array.dtype))
        for array in arrays
    ]
