"""Results of 8 bits: four vectors of requantised values become one vector of bytes.

AVX-512 narrows a vector of 32-bit integers by VPMOVDB, which is slow (two cycles and more on
AMD's and on Intel's cores), and each stores 16 bytes only. Packing with saturation narrows four
vectors by three instructions, and saturates as the quantisation asks for anyway:

    max(min(x, high), low) + 1.5 * 2^23, its bits, one byte of them     six operations
    VCVTPS2DQ(min(x, high)), VPACKSSDW, VPACKUSWB, VPERMD               three operations, and three
                                                                        quarters of one
The conversion rounds to nearest, ties to even, as the addition does; what lies below the least
32-bit integer becomes that one. Source: Intel 64 and IA-32 Architectures Software Developer's
Manual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Epilogue
from tinsmith.targets.cpu.expressions import call_name, constant_value, dtype_of
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.quantization import ROUNDING_ADDEND
from tinsmith.targets.spec import TargetSpec

# 32-bit lanes of a 512-bit register; so many of them become one register of bytes.
_LANES, _TOGETHER = 16, 4
_PACK = {"uint8": "llvm.x86.avx512.packuswb.512", "int8": "llvm.x86.avx512.packsswb.512"}


@dataclass(frozen=True)
class Results:
    """`lanes` results that lie side by side in the output, the first at `indices`.

    `value(lane)` is what the epilogue makes of one. Those of the same `run` follow one another
    in memory.
    """

    lanes: int
    indices: Sequence[Index]
    value: Callable[[Expr], Expr]
    run: int


def store_results(epilogue: Epilogue, results: Sequence[Results], spec: TargetSpec | None) -> Stmt:
    """Stores all `results`: packed, if they are bytes and `spec` has the instructions."""
    narrow = spec is not None and spec.vector_bits == 512 and "avx512bw" in spec.cpu_features
    dtype = str(epilogue.output.ty.dtype)
    if not narrow or dtype not in _PACK or _saturated(results[0].value(index(0)), dtype) is None:
        return loops.sequence(_stored(epilogue, item) for item in results)
    statements = []
    for start in range(0, len(results), _TOGETHER):
        group = results[start : start + _TOGETHER]
        alone = len(group) == 1
        statements.append(_stored(epilogue, group[0]) if alone else _packed(epilogue, group, dtype))
    return loops.sequence(statements)


def _stored(epilogue: Epilogue, item: Results) -> Stmt:
    def lane(offset: Expr) -> Stmt:
        *outer, last = item.indices
        return loops.store(epilogue.output, [*outer, index(last) + offset], item.value(offset))

    return loops.vectorized("lane", item.lanes, lane)


def _packed(epilogue: Epilogue, group: Sequence[Results], dtype: str) -> Stmt:
    """Two to four vectors of results, narrowed together."""
    scaled = loops.local_buffer("scaled", (len(group) * _LANES,), "float32")
    codes = loops.local_buffer("codes", (_TOGETHER * _LANES,), dtype)
    shift = 0
    rounded: list[Expr] = []
    statements: list[Stmt] = []
    for i, item in enumerate(group):

        def lane(offset: Expr, i: int = i, item: Results = item) -> Stmt:
            found = _saturated(item.value(offset), dtype)
            assert found is not None
            return loops.store(scaled, [offset + i * _LANES], found.scaled)

        found = _saturated(item.value(index(0)), dtype)
        assert found is not None
        shift = found.shift
        statements.append(loops.vectorized("lane", item.lanes, lane))
        rounded.append(_to_integers(tirx.BufferLoad(scaled, [loops.ramp(i * _LANES, _LANES)])))
    if shift:
        wide = loops.splat(tirx.const(shift, "int32"), _LANES)
        rounded = [vector + wide for vector in rounded]
    statements.append(tirx.BufferStore(codes, _pack(rounded, dtype), [loops.ramp(0, 64)]))
    first = 0
    while first < len(group):
        count, lanes = 1, group[first].lanes
        while (
            first + count < len(group)
            and group[first + count].run == group[first].run
            and group[first + count - 1].lanes == _LANES
        ):
            lanes += group[first + count].lanes
            count += 1
        *outer, last = (index(i) for i in group[first].indices)
        part = tirx.BufferLoad(codes, [loops.ramp(first * _LANES, lanes)])
        statements.append(
            tirx.BufferStore(epilogue.output, part, [*outer, loops.ramp(last, lanes)])
        )
        first += count
    return loops.allocate([scaled, codes], loops.sequence(statements))


def _to_integers(vector: Expr) -> Expr:
    """float32x16 rounded to int32x16 (VCVTPS2DQ)."""
    return tirx.call_llvm_pure_intrin(
        "int32x16",
        "llvm.x86.avx512.mask.cvtps2dq.512",
        vector,
        loops.splat(tirx.const(0, "int32"), _LANES),
        tirx.const(0xFFFF, "uint16"),
        tirx.const(4, "int32"),
    )


def _pack(vectors: Sequence[Expr], dtype: str) -> Expr:
    """Up to four int32x16 as 64 bytes in their order; the last one fills what is missing."""
    a, b, c, d = (vectors[min(i, len(vectors) - 1)] for i in range(_TOGETHER))
    if len(vectors) == 2:
        c, d = a, b

    def words(first: Expr, second: Expr) -> Expr:
        name = "llvm.x86.avx512.packssdw.512"
        return tirx.call_llvm_pure_intrin("int16x32", name, first, second)

    packed = tirx.call_llvm_pure_intrin(f"{dtype}x64", _PACK[dtype], words(a, b), words(c, d))
    # Both instructions pack within each 128 bits: there lie four bytes of each vector.
    order = [index(4 * (i % 4) + i // 4) for i in range(_LANES)]
    return tirx.reinterpret(
        f"{dtype}x64", tirx.Shuffle([tirx.reinterpret("int32x16", packed)], order)
    )


@dataclass(frozen=True)
class _Saturated:
    """Codes are `rint(scaled) + shift`, saturated."""

    scaled: Expr
    shift: int


def _saturated(value: Expr, dtype: str) -> _Saturated | None:
    """What `value` rounds, if it is a quantisation to the whole range of `dtype`."""
    if not isinstance(value, tirx.Cast) or dtype_of(value) != dtype:
        return None
    shift, bits = _offset(value.value)
    if call_name(bits) != "reinterpret" or dtype_of(bits) != "int32":
        return None
    rounded = bits.args[0]
    if not isinstance(rounded, tirx.Add) or _number(rounded.b) != float(ROUNDING_ADDEND):
        return None
    shift += int(ROUNDING_ADDEND.view(np.int32))
    limits = np.iinfo(dtype)
    low, high = float(limits.min - shift), float(limits.max - shift)
    outer = rounded.a
    if not isinstance(outer, tirx.Max) or _number(outer.b) != low:
        return None
    inner = outer.a
    if not isinstance(inner, tirx.Min) or _number(inner.b) != high:
        return None
    if shift < 0:
        # The least 32-bit integer would wrap around.
        return _Saturated(outer, shift)
    return _Saturated(tirx.min(_without_lower_bounds(inner.a, low), inner.b), shift)


def _offset(value: Expr) -> tuple[int, Expr]:
    """The literals added to `value`, and the rest."""
    total = 0
    while isinstance(value, (tirx.Add, tirx.Sub)):
        literal = constant_value(value.b)
        if literal is None:
            break
        total += literal if isinstance(value, tirx.Add) else -literal
        value = value.a
    return total, value


def _number(value: Expr) -> float | None:
    return float(value.value) if isinstance(value, tirx.FloatImm) else None


def _without_lower_bounds(value: Expr, low: float) -> Expr:
    """`value` without bounds that make no difference to what is at least `low` in the end."""
    if isinstance(value, tirx.Min):
        return tirx.min(_without_lower_bounds(value.a, low), value.b)
    if isinstance(value, tirx.Max):
        bound = _number(value.b)
        if bound is not None and bound <= low:
            return _without_lower_bounds(value.a, low)
    return value
