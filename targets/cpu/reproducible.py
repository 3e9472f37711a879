"""Which kernels compute the same bits on every target.

Integers do. Floats do as long as every operation is rounded as IEEE 754 says and in a prescribed
order: sums of products say which product is fused (`fused_sums`), and elementary functions are
made of such operations (`elementary_maths`). A sum of many floats is added up in the order that
suits a machine's vectors, and functions without such a lowering come from the target's library.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.s_tir import SBlock
from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.elementary_maths import LOWERINGS
from tinsmith.targets.cpu.expressions import call_name, dtype_of, loads

# Calls that every target rounds correctly, or that move and convert values.
_EXACT = frozenset(
    {
        "abs", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "fabs", "floor",
        "if_then_else", "isfinite", "isinf", "isnan", "likely", "nearbyint", "reinterpret",
        "round", "shift_left", "shift_right", "sqrt", "trunc",
    }
)  # fmt: skip
# Sums of floats, whose order differs between targets.
_ORDERED = (tirx.Add, tirx.Mul)


def is_reproducible(function: PrimFunc) -> bool:
    """Whether an unscheduled kernel computes the same bits on every target."""
    found: list[bool] = []

    def block(node: SBlock) -> None:
        found.append(node.init is None or not _sums_floats(node))

    def call(node: Call) -> None:
        found.append(_is_exact(node))

    tvm_ffi.structural_walk(function.body, (SBlock, block))
    tvm_ffi.structural_walk(function.body, (Call, call))
    return all(found)


def _sums_floats(block: SBlock) -> bool:
    sums: list[Any] = []

    def store(node: tirx.BufferStore) -> None:
        value = node.value
        accumulates = any(read.source.same_as(node.buffer) for read in loads(value))
        if accumulates and isinstance(value, _ORDERED) and "float" in dtype_of(value):
            sums.append(node)

    tvm_ffi.structural_walk(block.body, (tirx.BufferStore, store))
    return bool(sums)


def _is_exact(call: Call) -> bool:
    name = call_name(call)
    if name in LOWERINGS:
        return dtype_of(call) == "float32"
    return name in _EXACT
