"""Elementwise operators whose definitions in TVM are wrong for NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te, tirx, topi
from tvm.ir import Expr, GenericConst
from tvm.relax import BlockBuilder, Call

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def elementwise_legalizers() -> dict[str, Callable[[BlockBuilder, Call], Expr]]:
    """Legalisers by operator name."""
    return {"relax.sign": _sign, "relax.multiply": _multiply}


def _sign(bb: BlockBuilder, call: Call) -> Expr:
    dtype = str(call.ty.dtype)
    if dtype not in _FLOATS:
        return call.op.get_attr("FLegalize")(bb, call)

    def define(data: te.Tensor) -> te.Tensor:
        zero, one = tirx.const(0.0, dtype), tirx.const(1.0, dtype)

        def element(*index: Expr) -> Expr:
            x = data(*index)
            # What is neither is its own sign: the zeros and NaN.
            return tirx.Select(x < zero, zero - one, tirx.Select(x > zero, one, x))

        return te.compute(data.shape, element, name="sign")

    return bb.call_te(define, call.args[0], primfunc_name_hint="sign")


def _multiply(bb: BlockBuilder, call: Call) -> Expr:
    """A product with the number 0 is computed: TVM would make 0 of it, for NaN too."""
    for factor in call.args:
        if isinstance(factor, GenericConst) and str(factor.ty.dtype) in _FLOATS:
            value = np.asarray(factor.value.numpy())
            if value.ndim == 0 and float(value) == 0.0:
                other = call.args[1] if factor is call.args[0] else call.args[0]
                # An operand with an axis is read, a number is part of the expression.
                read = relax.const(value.reshape(1), str(factor.ty.dtype))
                return bb.call_te(topi.multiply, other, read, primfunc_name_hint="multiply")
    return call.op.get_attr("FLegalize")(bb, call)
