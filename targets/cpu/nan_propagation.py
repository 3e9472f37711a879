"""Maxima and minima of floats that are NaN where an operand is NaN, as in numpy and ONNX.

TVM's `Max` becomes `a > b ? a : b`, which answers the second operand where one is NaN. Two
operators take its place in scheduled kernels; they become LLVM's `maximum` and `minimum` at the end
(`tirx.transform.LowerIntrin`), when vectors have their final width, and on x86, where those order
the zeros of both signs at further cost, selections right before code is generated:

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
from tvm.tirx import PrimFunc, Stmt

_MAXIMUM, _MINIMUM = "tinsmith.maximum", "tinsmith.minimum"
_OPERATORS = {tirx.Max: _MAXIMUM, tirx.Min: _MINIMUM}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_CODES = ("int8", "uint8", "int16", "uint16")
# So many nodes of operands are written out several times.
_LARGEST_OPERANDS = 300
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
    def lower(call: Call) -> Expr:
        return tirx.call_llvm_pure_intrin(str(call.ty.dtype), f"llvm.{kind}", *call.args)

    return lower


@tirx.transform.prim_func_pass(opt_level=0, name="ExpandMaxima")
def expand_maxima(
    function: PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
) -> PrimFunc:
    """LLVM's maxima and minima by selections, where the target has no instruction for them.

    To be run last, right before code is generated. Operands are written out as often as they
    are read, and LLVM computes them once: names (`Let`) would cost TVM's code generator time that
    grows exponentially with their depth. Where that is too much LLVM's own form remains.
    """
    if _has_instruction():
        return function
    kinds = {_intrinsic(f"llvm.{kind}"): kind for kind in ("maximum", "minimum")}

    def expand(call: Call, mutator: Any) -> Expr:
        name = str(getattr(call.op, "name", ""))
        kind = None
        if name.endswith("call_llvm_pure_intrin") and isinstance(call.args[0], tirx.IntImm):
            kind = kinds.get(int(call.args[0].value))
        if kind is None:
            return mutator.default_mutate(call)
        left, right = (mutator.mutate(argument) for argument in call.args[-2:])
        if _size(left) + _size(right) > _LARGEST_OPERANDS:
            return tirx.call_llvm_pure_intrin(str(call.ty.dtype), f"llvm.{kind}", left, right)
        return _selection(kind, left, right)

    return function.with_body(tvm_ffi.structural_mutate(function.body, [(Call, expand)]))


def _selection(kind: str, a: Expr, b: Expr) -> Expr:
    """The larger or smaller by selections that each become one instruction of x86."""

    def further(left: Expr, right: Expr) -> Expr:
        return left > right if kind == "maximum" else left < right

    if _is_number(a) or _is_number(b):
        literal, value = (a, b) if _is_number(a) else (b, a)
        return tirx.Select(further(literal, value), literal, value)
    infinite = tirx.const(math.inf, str(a.ty.dtype))
    return tirx.Select(a <= infinite, tirx.Select(further(a, b), a, b), a)


def _size(value: Expr) -> int:
    """Number of nodes of an expression; too many where it calls a function or branches."""
    count = 0

    def visit(node: Expr) -> None:
        nonlocal count
        name = str(getattr(getattr(node, "op", None), "name", ""))
        once = "extern" in name or name.endswith("if_then_else")
        count += _LARGEST_OPERANDS + 1 if once else 1

    tvm_ffi.structural_walk(value, (Expr, visit))
    return count


def _intrinsic(name: str) -> int:
    """LLVM's number of an intrinsic function."""
    return int(tvm.get_global_func("target.llvm_lookup_intrinsic_id")(name))


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
