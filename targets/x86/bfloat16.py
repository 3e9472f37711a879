"""AVX512-BF16 as TensorIR operators: rounding to bfloat16 and sums of products of pairs.

TVM's code generator has no bfloat16: its legalisation makes integers of all bfloat16 values
beforehand, operands of intrinsics included. Hence two operators without bfloat16 operands,
which become calls of small functions in LLVM's language at the very end
(`tirx.transform.LowerIntrin`), when vectors have their final width; LLVM inlines them:

    round(x: float32 x N) -> uint16 x N                       VCVTNEPS2BF16: ties to even
    dot(c: float32 x 16, a: int32 x 16, b: int32 x 16) -> float32 x 16        VDPBF16PS

In `dot` each int32 is a pair of bfloat16. Both take denormal numbers for zero. Source: Intel
64 and IA-32 Architectures Software Developer's Manual.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, StringImm, register_op_attr
from tvm.tirx import PrimFunc

from tinsmith.targets.spec import TargetSpec

_ROUND = "tinsmith.round_to_bfloat16"
_DOT = "tinsmith.dot_bfloat16"
# TVM's CallEffectKind of a call whose value follows from its operands.
_PURE = 1
# float32 lanes of a 512-bit register.
_LANES = 16
_DEFINITIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)

define internal <16 x i16> @tinsmith_round_bfloat16(<16 x float> %x) alwaysinline nounwind {
  %rounded = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %bits = bitcast <16 x bfloat> %rounded to <16 x i16>
  ret <16 x i16> %bits
}

define internal <16 x float> @tinsmith_dot_bfloat16(
    <16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline nounwind {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %sum
}
"""


def dot(accumulator: Expr, left: Expr, right: Expr) -> Expr:
    """`accumulator + left[0] * right[0] + left[1] * right[1]` in each of 16 lanes.

    `accumulator` is float32x16; `left` and `right` are int32x16, each lane two bfloat16.
    """
    return tirx.call_intrin(accumulator.ty, _DOT, accumulator, left, right)


def use_bfloat16_instructions(function: PrimFunc, spec: TargetSpec) -> PrimFunc:
    """`function` with casts of float32 to bfloat16 as VCVTNEPS2BF16, if `spec` has that.

    What the operators of this file become is defined in the result.
    """
    if not spec.bfloat16:
        return function

    def convert(cast: tirx.Cast, mutator: Any) -> Expr:
        value = mutator.mutate(cast.value)
        source, result = (tvm.DataType(str(e.ty.dtype)) for e in (value, cast))
        if str(source.with_lanes(1)) != "float32" or str(result.with_lanes(1)) != "bfloat16":
            return tirx.Cast(str(result), value)
        bits = str(tvm.DataType("uint16").with_lanes(result.lanes))
        return tirx.reinterpret(str(result), tirx.call_intrin(bits, _ROUND, value))

    body = tvm_ffi.structural_mutate(function.body, [(tirx.Cast, convert)])
    calls: list[str] = []
    tvm_ffi.structural_walk(body, (Call, lambda call: calls.append(str(call.op.name))))
    if _ROUND in calls or _DOT in calls:
        nothing = tirx.const(0, "int32")
        body = tirx.AttrStmt(nothing, "pragma_import_llvm", StringImm(_DEFINITIONS), body)
    return PrimFunc(list(function.params), body, function.ret_type, attrs=function.attrs)


@tirx.transform.prim_func_pass(opt_level=0, name="SpreadBfloat16")
def spread_bfloat16(
    function: PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
) -> PrimFunc:
    """Broadcasts of bfloat16 as integers: TVM's BF16StorageLegalize overlooks them."""

    def spread(broadcast: tirx.Broadcast, mutator: Any) -> Expr:
        value = mutator.mutate(broadcast.value)
        if str(value.ty.dtype) != "bfloat16":
            return tirx.Broadcast(value, broadcast.lanes)
        bits = tirx.Broadcast(tirx.reinterpret("uint16", value), broadcast.lanes)
        return tirx.reinterpret(str(broadcast.ty.dtype), bits)

    return function.with_body(tvm_ffi.structural_mutate(function.body, [(tirx.Broadcast, spread)]))


def _lower_dot(call: Call) -> Expr:
    return tirx.call_pure_extern("float32x16", "tinsmith_dot_bfloat16", *call.args)


def _lower_round(call: Call) -> Expr:
    """Registers of 16 values each; what is missing in the last is filled up."""
    value = call.args[0]
    lanes = tvm.DataType(str(value.ty.dtype)).lanes
    pieces = []
    for start in range(0, lanes, _LANES):
        piece = value
        if lanes == 1:
            piece = tirx.Broadcast(value, _LANES)
        elif lanes != _LANES:
            copies = [value] * -(-_LANES // lanes)
            last = len(copies) * lanes - 1
            piece = _shuffle(copies, [min(start + i, last) for i in range(_LANES)])
        pieces.append(tirx.call_pure_extern("uint16x16", "tinsmith_round_bfloat16", piece))
    return pieces[0] if lanes == _LANES else _shuffle(pieces, list(range(lanes)))


def _shuffle(vectors: list[Expr], lanes: list[int]) -> Expr:
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])


def _register() -> None:
    for name, lowering in ((_ROUND, _lower_round), (_DOT, _lower_dot)):
        # The first attribute creates the operator.
        register_op_attr(name, "TCallEffectKind", _PURE)
        register_op_attr(name, "TVectorizable", True)
        register_op_attr(name, "TScriptPrinterName", name)
        tirx.register_intrin_lowering(name, "default", f=lowering)


_register()
