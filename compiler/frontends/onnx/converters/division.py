"""Quotients and remainders of integers by what is computed, and may be 0 or -1.

Processors end a program that divides an integer by zero, or the smallest integer by -1. Such
quotients are undefined in ONNX; here they are what numpy makes of them: 0 for a divisor of zero,
and the smallest integer again. The remainder is 0 in both cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import Div as TvmDiv
from tvm.relax.frontend.onnx.onnx_frontend import Mod as TvmMod

from tinsmith.compiler.frontends.onnx.converters.constants import as_numpy, dtype_of


class Div(TvmDiv):
    """x / y, of integers toward zero."""

    @classmethod
    def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, y = inputs[0], inputs[1]
        if not _is_risky(x, y):
            return super()._impl_v7(bb, inputs, attr, params)
        dtype = dtype_of(y)
        zero = bb.emit(relax.op.equal(y, relax.const(0, dtype)))
        quotient = super()._impl_v7(bb, [x, _safe(bb, y)], attr, params)
        if not dtype.startswith("uint"):
            negated = relax.op.subtract(relax.const(0, dtype), x)
            minus = relax.op.equal(y, relax.const(-1, dtype))
            quotient = relax.op.where(minus, negated, quotient)
        return relax.op.where(zero, relax.const(0, dtype), quotient)


class Mod(TvmMod):
    """The remainder, with the sign of y, or with `fmod` that of x."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, y = inputs[0], inputs[1]
        if _is_risky(x, y):
            y = _safe(bb, y)
        return super()._impl_v10(bb, [x, y], attr, params)


def _is_risky(x: Any, y: Any) -> bool:
    """Whether integers are divided, one of them computed, by what may be 0 or -1."""
    if not all(isinstance(e, relax.Expr) and isinstance(e.ty, relax.TensorType) for e in (x, y)):
        return False
    if not dtype_of(y).startswith(("int", "uint")):
        return False
    divisor = as_numpy(y)
    if divisor is None:
        return True
    return as_numpy(x) is None and bool(np.isin(divisor, (0, -1)).any())


def _safe(bb: Any, y: relax.Expr) -> relax.Expr:
    """The divisor, 1 in place of 0 and -1."""
    dtype = dtype_of(y)
    bad = relax.op.equal(y, relax.const(0, dtype))
    if not dtype.startswith("uint"):
        bad = relax.op.logical_or(bad, relax.op.equal(y, relax.const(-1, dtype)))
    return bb.emit(relax.op.where(bad, relax.const(1, dtype), y))
