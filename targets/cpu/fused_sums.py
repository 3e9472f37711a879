"""Sums of products with one rounding, where every target has to round alike.

`a * b + c` may be rounded twice, or once by a fused multiply-add; of `a * b + c * d` either product
may be the one that is fused. Left to itself LLVM decides by target and by what else reads the
products, and the codes of a quantised tensor differ by one where a value lies near a tie. Kernels
say it therefore. In float32 and float64,

    x + a * b   is  fma(a, b, x)      (of two products the right one)
    a * b + x   is  fma(a, b, x)
    x - a * b   is  fma(-a, b, x)
    a * b - x   is  fma(a, b, -x)

The operator becomes `llvm.fma` at the very end (`tirx.transform.LowerIntrin`), when vectors have
their final width: VFMADD on x86, FMLA on AArch64, VFMA on ARMv7 with VFPv4. Numpy's equivalent
is `tinsmith.passes.quantize.numbers.fused_multiply_add`.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, register_op_attr
from tvm.tirx import PrimFunc

from tinsmith.targets.spec import TargetSpec

_FUSED = "tinsmith.fused_multiply_add"
_FLOATS = ("float32", "float64")
# TVM's CallEffectKind of a call whose value follows from its operands.
_PURE = 1


def fuse_products(function: PrimFunc, spec: TargetSpec) -> PrimFunc:
    """`function` with a fused multiply-add for each sum of a product.

    Nothing changes for a machine without that instruction: a call of a library for each
    element is no kernel. No target of this project is one.
    """
    if not has_fused_multiply_add(spec):
        return function

    def addition(node: Any, mutator: Any) -> Expr:
        left, right = mutator.mutate(node.a), mutator.mutate(node.b)
        if _is_product(right):
            return _fused(right.a, right.b, left)
        return _fused(left.a, left.b, right) if _is_product(left) else tirx.Add(left, right)

    def subtraction(node: Any, mutator: Any) -> Expr:
        left, right = mutator.mutate(node.a), mutator.mutate(node.b)
        if _is_product(right):
            return _fused(_negative(right.a), right.b, left)
        if _is_product(left):
            return _fused(left.a, left.b, _negative(right))
        return tirx.Sub(left, right)

    callbacks = [(tirx.Add, addition), (tirx.Sub, subtraction)]
    return function.with_body(tvm_ffi.structural_mutate(function.body, callbacks))


def has_fused_multiply_add(spec: TargetSpec) -> bool:
    """Whether the machine has one for float32."""
    return spec.architecture == "aarch64" or not {"fma", "vfpv4"}.isdisjoint(spec.cpu_features)


def _is_product(value: Expr) -> bool:
    if not isinstance(value, tirx.Mul):
        return False
    return str(tvm.DataType(str(value.ty.dtype)).with_lanes(1)) in _FLOATS


def _fused(a: Expr, b: Expr, c: Expr) -> Expr:
    return tirx.call_intrin(str(c.ty.dtype), _FUSED, a, b, c)


def _negative(value: Expr) -> Expr:
    """-value; LLVM makes it part of the instruction."""
    return value * tirx.const(-1.0, str(value.ty.dtype))


def _lower(call: Call) -> Expr:
    return tirx.call_llvm_pure_intrin(str(call.ty.dtype), "llvm.fma", *call.args)


def _register() -> None:
    # The first attribute creates the operator.
    register_op_attr(_FUSED, "TCallEffectKind", _PURE)
    register_op_attr(_FUSED, "TVectorizable", True)
    register_op_attr(_FUSED, "TScriptPrinterName", _FUSED)
    tirx.register_intrin_lowering(_FUSED, "default", f=_lower)


_register()
