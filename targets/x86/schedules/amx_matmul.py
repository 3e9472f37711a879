"""Matrix products by AMX tiles, where the right operand is constant."""

from __future__ import annotations

import math

from tvm.ir import Expr
from tvm.tirx import PrimFunc

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import arithmetic_named, sums_floats
from tinsmith.targets.cpu.loops import Index, index, unravel
from tinsmith.targets.cpu.operators.matmul import MatmulWorkload
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template
from tinsmith.targets.x86.schedules.amx_tiles import (
    TileEmitter,
    TileOperands,
    TileProduct,
    decision_space,
    default_decisions,
)
from tinsmith.targets.x86.tile_instructions import ROW_BYTES, tile_arithmetic


class AmxMatmulTemplate(Template):
    """Matrix product of int8 or bfloat16 with packed weights; decisions: see `amx_tiles`."""

    name = "matmul-amx"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "matmul" or find_anchor(function) is None:
            return None
        workload = MatmulWorkload.from_json(dict(found))
        if workload.lanes * 4 != ROW_BYTES or tile_arithmetic(workload.arithmetic, spec) is None:
            return None
        plain = workload.compressed is None and workload.zero_point == 0
        if not plain or workload.right_batch or not _product(workload).pays:
            return None
        return Match(workload, workload.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return sums_floats(match.workload.arithmetic)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        return default_decisions(_product(match.workload), spec)

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        return decision_space()

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        w: MatmulWorkload = match.workload
        tiles = tile_arithmetic(w.arithmetic, spec)
        if anchor is None or tiles is None:
            raise ValueError("not a matrix product that AMX computes")
        emitter = TileEmitter(
            _product(w),
            _Operands(w, anchor),
            arithmetic_named(w.arithmetic),
            tiles,
            anchor.epilogue,
            decisions,
        )
        return anchor.rebuild(emitter.body(match))


def _product(w: MatmulWorkload) -> TileProduct:
    blocks = -(-w.n // w.lanes)
    return TileProduct(
        images=1,
        # A constant right operand is the same for all batches: their rows form one matrix.
        positions=math.prod(w.batch) * w.m,
        groups=1,
        blocks=blocks,
        spare=blocks * w.lanes - w.n,
        taps=(1, 1),
        run=-(-w.k // arithmetic_named(w.arithmetic).depth),
    )


class _Operands(TileOperands):
    def __init__(self, w: MatmulWorkload, anchor: Anchor):
        self.w = w
        self.left, self.right = anchor.operands
        self.pitch = w.k * 4 // arithmetic_named(w.arithmetic).depth

    def data(
        self, group: Expr, image: Expr, position: Expr, tap: tuple[Expr, Expr], element: Expr
    ) -> Expr:
        # Rows lie one behind the other, whatever batch they belong to.
        return loops.load(self.left, *[0] * len(self.w.left_batch), position, element)

    def weights(self, group: Expr, block: Expr, tap: tuple[Expr, Expr], row: Expr) -> Expr:
        return loops.load(self.right, block, row, 0)

    def inside(self, position: Expr) -> Expr | None:
        return None

    def place(self, group: Expr, image: Expr, position: Expr, column: Expr) -> list[Index]:
        return [*unravel(position, (*self.w.batch, self.w.m)), index(column)]
