"""Maxima and minima of floats that are NaN where an operand is NaN, as in numpy and ONNX.

TVM's `Max` becomes `a > b ? a : b`, which answers the second operand where one is NaN. Two
operators take its place in scheduled kernels; they become LLVM's at the very end
(`tirx.transform.LowerIntrin`), when vectors have their final width:

| operands | AArch64, ARMv7 | x86 |
|---|---|---|
| a value and a literal | FMAX, VMAX.F32 | VMAXPS: it answers its second operand, the value |
| two values | FMAX, VMAX.F32 | VMAXPS, VCMPUNORDPS and a blend |

Of two zeros of different sign either may come out. Sources: Intel 64 and IA-32 Architectures
Software Developer's Manual, MAXPS; Arm A64 Instruction Set Architecture, FMAX (vector).
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, register_op_attr
from tvm.s_tir import SBlock
from tvm.tirx import PrimFunc, Stmt, Var

_MAXIMUM, _MINIMUM = "tinsmith.maximum", "tinsmith.minimum"
_OPERATORS = {tirx.Max: _MAXIMUM, tirx.Min: _MINIMUM}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_CODES = ("int8", "uint8", "int16", "uint16")
# TVM's CallEffectKind of a call whose value follows from its operands.
_PURE = 1


def propagate_nan(function: PrimFunc) -> PrimFunc:
    """`function` with the operators of this file for `Max` and `Min` of floats.

    Reductions in blocks that start at the largest finite numbers start at the infinities.
    What is rounded to codes of a quantisation stays as it is: there NaN has no meaning.
    """

    def combined(node: Any, mutator: Any) -> Expr:
        return combination(type(node), mutator.mutate(node.a), mutator.mutate(node.b))

    def cast(node: tirx.Cast, mutator: Any) -> Expr:
        if _element(node) in _CODES and _is_rounded(node.value):
            return node
        return tirx.Cast(str(node.ty.dtype), mutator.mutate(node.value))

    callbacks = [((tirx.Max, tirx.Min), combined), (tirx.Cast, cast)]
    body = tvm_ffi.structural_mutate(function.body, callbacks)
    return function.with_body(tvm_ffi.structural_map(body, (SBlock, _from_infinity)))


@tirx.transform.prim_func_pass(opt_level=0, name="PropagateNan")
def propagate_nan_in_kernels(
    function: PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
) -> PrimFunc:
    """`propagate_nan` for kernels that are not scheduled."""
    return propagate_nan(function)


def combination(kind: type[tirx.Max] | type[tirx.Min], left: Expr, right: Expr) -> Expr:
    """The larger (`tirx.Max`) or smaller (`tirx.Min`) of two values; NaN if one is NaN."""
    dtype = tvm.DataType(str(left.ty.dtype))
    element = _element(left)
    if element not in _FLOATS:
        return kind(left, right)
    if element == "bfloat16":
        # Intrinsics must not have bfloat16 operands: TVM's legalisation makes integers of them.
        wide = str(tvm.DataType("float32").with_lanes(dtype.lanes))
        widened = combination(kind, tirx.Cast(wide, left), tirx.Cast(wide, right))
        return tirx.Cast(str(dtype), widened)
    return tirx.call_intrin(str(dtype), _OPERATORS[kind], left, right)


def lowest(dtype: str) -> Expr:
    """What a maximum begins with: minus infinity, or the least integer."""
    return tirx.const(-math.inf, dtype) if "float" in dtype else tirx.min_value(dtype)


def highest(dtype: str) -> Expr:
    """What a minimum begins with: infinity, or the greatest integer."""
    return tirx.const(math.inf, dtype) if "float" in dtype else tirx.max_value(dtype)


def beginning(initial: Expr) -> Expr:
    """`initial`, or the infinity that it stands for.

    TVM starts a maximum at the lowest finite number, which is wrong for a row of minus
    infinities (an attention mask that hides everything).
    """
    dtype = str(initial.ty.dtype)
    if isinstance(initial, tirx.FloatImm) and dtype in _FLOATS:
        for infinite, finite in ((lowest, tirx.min_value), (highest, tirx.max_value)):
            if float(initial.value) == float(finite(dtype).value):
                return infinite(dtype)
    return initial


def _from_infinity(block: SBlock) -> SBlock:
    if block.init is None:
        return block

    def store(statement: tirx.BufferStore) -> Stmt:
        value = beginning(statement.value)
        return tirx.BufferStore(statement.buffer, value, list(statement.indices))

    initial = tvm_ffi.structural_map(block.init, (tirx.BufferStore, store))
    return SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, block.body, initial,
        block.alloc_buffers, block.match_buffers, block.annotations,
    )  # fmt: skip


def _element(value: Expr) -> str:
    return str(tvm.DataType(str(value.ty.dtype)).with_lanes(1))


def _is_rounded(value: Expr) -> bool:
    """Whether integers come from the bits of a float (see `operators.quantization`)."""
    while isinstance(value, (tirx.Add, tirx.Sub)):
        value = value.a
    name = str(getattr(getattr(value, "op", None), "name", ""))
    return isinstance(value, Call) and name.rpartition(".")[2] == "reinterpret"


def _lowering(kind: str) -> Any:
    def further(a: Expr, b: Expr) -> Expr:
        return a > b if kind == "maximum" else a < b

    def lower(call: Call) -> Expr:
        left, right = call.args
        dtype = str(call.ty.dtype)
        if _has_instruction():
            return tirx.call_llvm_pure_intrin(dtype, f"llvm.{kind}", left, right)
        a, b = Var("a", dtype), Var("b", dtype)
        # Without a name for each operand, both would be computed several times.
        if _is_number(left) or _is_number(right):
            literal, value = (left, right) if _is_number(left) else (right, left)
            return tirx.Let(a, value, tirx.Select(further(literal, a), literal, a))
        infinite = tirx.const(math.inf, dtype)
        # `a` is compared with infinity and not with itself, which TVM's simplifier takes for true.
        chosen = tirx.Select(a <= infinite, tirx.Select(further(a, b), a, b), a)
        return tirx.Let(a, left, tirx.Let(b, right, chosen))

    return lower


def _has_instruction() -> bool:
    """Whether the target passes NaN on in its instruction for maxima."""
    target = tvm.target.Target.current(allow_none=True)
    return target is not None and str(target.attrs.get("mtriple", "")).startswith(
        ("aarch64", "arm")
    )


def _is_number(value: Expr) -> bool:
    """Whether it is a literal other than NaN: one instruction of x86 does for it."""
    literal = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(literal, tirx.FloatImm) and not math.isnan(float(literal.value))


def _register() -> None:
    for kind, name in (("maximum", _MAXIMUM), ("minimum", _MINIMUM)):
        # The first attribute creates the operator.
        register_op_attr(name, "TCallEffectKind", _PURE)
        register_op_attr(name, "TVectorizable", True)
        register_op_attr(name, "TScriptPrinterName", name)
        tirx.register_intrin_lowering(name, "default", f=_lowering(kind))


_register()
