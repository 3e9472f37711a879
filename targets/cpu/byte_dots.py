"""Sums of four products of signed bytes, for kernels written before their machine is known.

`multiply_add` is a TensorIR operator; with a code c[i] and weights w[lane, i] of -127 to 127

    accumulator[lane] + sum over i < 4 of c[i] * w[lane, i]                  (int32, exact)

`use_byte_dots` makes of it what the machine has. x86 multiplies unsigned by signed bytes only,
so the sign of the code goes over to the weight, |c| * (sign(c) * w): exact for c = -128 too, and
no sum of two such products (at most 2 * 128 * 127 = 32512) saturates 16 bits. On machines
without such instructions the bytes are shifted out of their words and multiplied as they are.
Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, PSIGNB, PMADDUBSW,
VPDPBUSD; Arm A64 Instruction Set Architecture, SDOT, SMULL, SADDLP, ADDP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, register_op_attr
from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.arithmetic import vector
from tinsmith.targets.spec import TargetSpec

_DOT = "tinsmith.dot_bytes"
# TVM's CallEffectKind of a call whose value follows from its operands.
_PURE = 1

# The new accumulators from those of some lanes, a word with the four codes, and the weights.
_Step = Callable[[Expr, Expr, Expr], Expr]


def multiply_add(accumulator: Expr, codes: Expr, weights: Expr) -> Expr:
    """The new accumulators, int32 x lanes.

    `codes` are int8 x 4, `weights` int8 x (4 * lanes), those of lane 0 first. Weights of -128 are
    not allowed.
    """
    return tirx.call_intrin(accumulator.ty, _DOT, accumulator, codes, weights)


def use_byte_dots(function: PrimFunc, spec: TargetSpec) -> PrimFunc:
    """`function` with each `multiply_add` in the instructions of the machine."""
    width, step = _instructions(spec)

    def convert(call: Call, mutator: Any) -> Expr:
        operands = [mutator.mutate(argument) for argument in call.args]
        if getattr(call.op, "name", "") != _DOT:
            return Call(call.op, operands, call.attrs, call.ty_args, ret_ty=call.ty)
        accumulator, codes, weights = operands
        lanes = _lanes(accumulator)
        if step is None or lanes % width:
            return _portable(accumulator, codes, weights)
        word = tirx.reinterpret("int32", codes)
        return _joined(
            [
                step(
                    _part(accumulator, start, width),
                    word,
                    _part(weights, 4 * start, 4 * width),
                )
                for start in range(0, lanes, width)
            ]
        )

    return function.with_body(tvm_ffi.structural_mutate(function.body, [(Call, convert)]))


def _instructions(spec: TargetSpec) -> tuple[int, _Step | None]:
    """The lanes of a register, and the step that it takes; None: no instructions are known."""
    features = spec.cpu_features
    if spec.architecture == "x86_64" and spec.vector_bits == 512 and "avx512bw" in features:
        return 16, _vnni_512 if "avx512_vnni" in features else _avx512
    if spec.architecture == "x86_64" and "avx2" in features:
        return 8, _vnni_256 if "avx_vnni" in features else _avx2
    if spec.architecture == "aarch64":
        return 4, _sdot if "asimddp" in features else _neon
    return 1, None


def _portable(accumulator: Expr, codes: Expr, weights: Expr) -> Expr:
    lanes = _lanes(accumulator)
    words = tirx.reinterpret(vector("int32", lanes), weights)
    code_word = tirx.reinterpret("int32", codes)
    for number in range(4):
        code = _byte(code_word, number, 1)
        accumulator = accumulator + tirx.Broadcast(code, lanes) * _byte(words, number, lanes)
    return accumulator


def _byte(words: Expr, number: int, lanes: int) -> Expr:
    """The signed bytes at a place of (little-endian) words."""

    def distance(bits: int) -> Expr:
        amount = tirx.const(bits, "int32")
        return amount if lanes == 1 else tirx.Broadcast(amount, lanes)

    up = words if number == 3 else tirx.shift_left(words, distance(24 - 8 * number))
    return tirx.shift_right(up, distance(24))


def _avx2(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    pairs = tirx.call_llvm_pure_intrin(
        "int16x16", "llvm.x86.avx2.pmadd.ub.sw", *_magnitudes_and_signed(word, weights)
    )
    ones = tirx.Broadcast(tirx.const(1, "int16"), 16)
    return accumulator + tirx.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones
    )


def _vnni_256(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    magnitudes, signed = _magnitudes_and_signed(word, weights)
    return tirx.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx512.vpdpbusd.256", accumulator, magnitudes, signed
    )


def _magnitudes_and_signed(word: Expr, weights: Expr) -> tuple[Expr, Expr]:
    codes = tirx.reinterpret("int8x32", tirx.Broadcast(word, 8))
    sign = "llvm.x86.avx2.psign.b"
    magnitudes = tirx.call_llvm_pure_intrin("int8x32", sign, codes, codes)
    signed = tirx.call_llvm_pure_intrin("int8x32", sign, weights, codes)
    return tirx.reinterpret("uint8x32", magnitudes), signed


def _vnni_512(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    magnitudes, signed = selected(word, weights)
    return tirx.call_llvm_pure_intrin(
        "int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, magnitudes, signed
    )


def _avx512(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    pairs = tirx.call_llvm_pure_intrin(
        "int16x32", "llvm.x86.avx512.pmaddubs.w.512", *selected(word, weights)
    )
    ones = tirx.Broadcast(tirx.const(1, "int16"), 32)
    return accumulator + tirx.call_llvm_pure_intrin(
        "int32x16", "llvm.x86.avx512.pmaddw.d.512", pairs, ones
    )


def selected(word: Expr, weights: Expr) -> tuple[Expr, Expr]:
    """Magnitudes of codes (uint8), and weights with their signs: AVX-512 has no PSIGNB."""
    codes = tirx.reinterpret("int8x64", tirx.Broadcast(word, 16))
    nothing = tirx.Broadcast(tirx.const(0, "int8"), 64)
    negative = codes < nothing
    # Unsigned, because -128 has no negative among the signed.
    plain = tirx.reinterpret("uint8x64", codes)
    negated = tirx.Broadcast(tirx.const(0, "uint8"), 64) - plain
    magnitudes = tirx.Select(negative, negated, plain)
    return magnitudes, tirx.Select(negative, nothing - weights, weights)


def _sdot(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    codes = tirx.reinterpret("int8x16", tirx.Broadcast(word, 4))
    return tirx.call_llvm_pure_intrin(
        "int32x4", "llvm.aarch64.neon.sdot", accumulator, codes, weights
    )


def _neon(accumulator: Expr, word: Expr, weights: Expr) -> Expr:
    codes = tirx.reinterpret("int8x8", tirx.Broadcast(word, 2)).astype("int16x8")
    sums = [
        tirx.call_llvm_pure_intrin(
            "int32x4",
            "llvm.aarch64.neon.saddlp",
            codes * _part(weights, start, 8).astype("int16x8"),
        )
        for start in (0, 8)
    ]
    return accumulator + tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp", *sums)


def _lanes(value: Expr) -> int:
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def _part(value: Expr, start: int, lanes: int) -> Expr:
    if lanes == _lanes(value):
        return value
    return tirx.Shuffle([value], [tirx.const(start + i, "int32") for i in range(lanes)])


def _joined(parts: list[Expr]) -> Expr:
    if len(parts) == 1:
        return parts[0]
    count = sum(map(_lanes, parts))
    return tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(count)])


def _register() -> None:
    # The first attribute creates the operator.
    register_op_attr(_DOT, "TCallEffectKind", _PURE)
    register_op_attr(_DOT, "TScriptPrinterName", _DOT)
    tirx.register_intrin_lowering(_DOT, "default", f=lambda call: _portable(*call.args))


_register()
