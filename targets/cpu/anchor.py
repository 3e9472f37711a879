"""Takes a fused function apart into its anchor block and what follows it.

The anchor is the block that an operator definition has annotated with its
workload (`template.WORKLOAD_ATTRIBUTE`): a convolution, a matrix product, a
pooling. Whatever fusion has put behind it (bias, activation, residual, scale)
becomes an `Epilogue`: an expression of the accumulated value and the output
indices, which a template evaluates while the value is still in a register.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.s_tir import SBlock, Schedule
from tvm.tirx import PrimFunc, Var

from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.template import WORKLOAD_ATTRIBUTE


@dataclass(frozen=True)
class Epilogue:
    """What is stored for one accumulated value.

    `value(accumulated, indices)` is the expression to store at `indices` of
    `output`; the indices are those of the anchor's own output.
    """

    output: Var
    value: Callable[[Expr, Sequence[Index]], Expr]


@dataclass(frozen=True)
class Anchor:
    """A fused function, understood.

    `operands` are the anchor's input buffers in the order in which its body
    reads them. All indices of `function` are 32 bits wide.
    """

    function: PrimFunc
    workload: Mapping[str, Any]
    operands: tuple[Var, ...]
    epilogue: Epilogue

    def rebuild(self, body: tirx.Stmt) -> PrimFunc:
        """The function with `body` in place of its naive loops."""
        return PrimFunc(
            list(self.function.params), body, self.function.ret_type, attrs=self.function.attrs
        )


def workload_of(function: PrimFunc) -> Mapping[str, Any] | None:
    """The workload that an operator definition attached to the one anchor of `function`."""
    found: list[str] = []

    def visit(block: SBlock) -> None:
        if WORKLOAD_ATTRIBUTE in block.annotations:
            found.append(str(block.annotations[WORKLOAD_ATTRIBUTE]))

    tvm_ffi.structural_walk(function.body, (SBlock, visit))
    return json.loads(found[0]) if len(found) == 1 else None


def compulsory_bytes(function: PrimFunc) -> int:
    """Bytes of all parameters: the least traffic of one call."""
    return sum(
        math.prod(int(extent) for extent in p.ty.shape) * (tvm.DataType(str(p.ty.dtype)).bits // 8)
        for p in function.params
    )


def find_anchor(function: PrimFunc) -> Anchor | None:
    """Takes `function` apart; None unless an elementwise chain follows its one anchor."""
    narrowed = tirx.transform.ForceNarrowIndexToInt32()(tvm.IRModule({"main": function}))
    schedule = Schedule(narrowed)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    if WORKLOAD_ATTRIBUTE not in schedule.get(blocks[0]).annotations:
        return None
    if any(WORKLOAD_ATTRIBUTE in schedule.get(b).annotations for b in blocks[1:]):
        return None
    for block in blocks[1:-1]:
        schedule.compute_inline(block)
    fused = schedule.mod["main"]
    parameters = set(fused.params)
    anchor = schedule.get(blocks[0])
    accumulated = anchor.writes[0].source
    operands: list[Var] = []
    for load in _loads(anchor.body):
        if load.source in parameters and load.source not in operands:
            operands.append(load.source)
    if len(blocks) == 1:
        operands = [b for b in operands if not b.same_as(accumulated)]
        epilogue: Epilogue | None = Epilogue(accumulated, lambda value, _: value)
    else:
        epilogue = _epilogue(schedule.get(blocks[-1]), accumulated, parameters)
    if epilogue is None:
        return None
    workload = json.loads(str(anchor.annotations[WORKLOAD_ATTRIBUTE]))
    return Anchor(fused, workload, tuple(operands), epilogue)


def _loads(node: Any) -> list[TensorLoad]:
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(node, (TensorLoad, found.append))
    return found


def _epilogue(block: SBlock, accumulated: Var, parameters: set[Var]) -> Epilogue | None:
    store = block.body
    if not isinstance(store, tirx.BufferStore) or store.buffer not in parameters:
        return None
    variables = [v.var for v in block.iter_vars]
    if len(store.indices) != len(variables) or not all(
        i.same_as(v) for i, v in zip(store.indices, variables, strict=True)
    ):
        return None
    for load in _loads(store.value):
        if load.source.same_as(accumulated):
            own = [int(extent) for extent in accumulated.ty.shape]
            if own != [int(extent) for extent in store.buffer.ty.shape]:
                return None
            if not all(
                i.same_as(v) or (extent == 1 and isinstance(i, tirx.IntImm))
                for i, v, extent in zip(load.indices, variables, own, strict=True)
            ):
                return None
        elif load.source not in parameters:
            return None

    def value(register: Expr, indices: Sequence[Index]) -> Expr:
        mapping = {v: index(i) for v, i in zip(variables, indices, strict=True)}
        return tvm_ffi.structural_map(
            store.value,
            (
                (Var, lambda v: mapping.get(v, v)),
                (
                    TensorLoad,
                    lambda load: register if load.source.same_as(accumulated) else load,
                ),
            ),
        )

    return Epilogue(store.buffer, value)
