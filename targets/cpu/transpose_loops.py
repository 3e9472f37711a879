"""Transposes in registers: square tiles read along one axis and written along another.

    for each block of `n` columns, each block of `n` rows:
        n vector loads, n log2(n) shuffles, n vector stores

A vector loop over a strided read would load one element at a time; with tiles
both sides run along cache lines. Blocks at the end overlap their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import ForKind, Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.domain import Assignment, Box, opaque_variables
from tinsmith.targets.cpu.expressions import (
    int32,
    linear_form,
    loads,
    replace_loads,
    substitute,
)
from tinsmith.targets.cpu.program import Axis

_LARGEST_TILE = 16
_SMALLEST_TILE = 4


@dataclass(frozen=True)
class TransposePlan:
    """The box is stored along `across` and read along `along`, in tiles of `size` squared."""

    across: Axis
    along: Axis
    size: int


def plan_transpose(box: Box, lanes: int) -> TransposePlan | None:
    """How to tile `box`, or None where a plain vector loop does as well."""
    if len(box.assignments) != 1 or len(box.axes) < 2:
        return None
    assignment = box.assignments[0]
    stored = linear_form(assignment.offset)
    across = next((a for a in box.axes if stored.stride(a.var) == 1), None)
    if across is None or stored.rest:
        return None
    forms = [linear_form(r.indices[0]) for r in loads(assignment.value)]
    opaque = opaque_variables(box)
    strided = [f for f in forms if f.stride(across.var) not in (0, 1)]
    for along in box.axes:
        if along is across or along.var in opaque or across.var in opaque:
            continue
        if strided and all(f.stride(along.var) == 1 for f in strided):
            size = _tile_size(min(across.extent, along.extent, lanes, _LARGEST_TILE))
            if size >= _SMALLEST_TILE:
                return TransposePlan(across, along, size)
    return None


def _tile_size(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


def transposed_tiles(box: Box, plan: TransposePlan) -> tuple[list[Axis], Stmt]:
    """The loops (outermost first, all may run in parallel) and the body of one tile."""
    size = plan.size
    columns = Axis(Var("columns", "int32"), -(-plan.along.extent // size))
    rows = Axis(Var("rows", "int32"), -(-plan.across.extent // size))
    first_row = _block_start(rows, plan.across.extent, size)
    first_column = _block_start(columns, plan.along.extent, size)
    outer = [a for a in box.axes if a is not plan.across and a is not plan.along]
    body = _tile(box.assignments[0], plan, first_row, first_column)
    return [*outer, columns, rows], body


def _block_start(blocks: Axis, extent: int, size: int) -> Expr:
    start = blocks.var * int32(size)
    return start if extent % size == 0 else tirx.min(start, int32(extent - size))


def _tile(assignment: Assignment, plan: TransposePlan, first_row: Expr, first_column: Expr) -> Stmt:
    across, along, size = plan.across.var, plan.along.var, plan.size
    statements: list[Stmt] = []
    tiles: list[tuple[TensorLoad, Var]] = []
    for read in loads(assignment.value):
        contiguous = linear_form(read.indices[0]).stride(across) in (0, 1)
        if contiguous or _find(tiles, read) is not None:
            continue
        tile = _new_tile(read, size, statements)
        for row in range(size):
            mapping = {across: first_row + int32(row), along: first_column}
            start = substitute(read.indices[0], mapping)
            vector = tirx.BufferLoad(read.source, [loops.ramp(start, size)])
            statements.append(_store_vector(tile, row, vector, size))
        tiles.append((read, _transposed(tile, read, size, statements)))
    for column in range(size):
        statements.append(_column(assignment, plan, tiles, first_row, first_column, column))
    return loops.sequence(statements)


def _column(
    assignment: Assignment,
    plan: TransposePlan,
    tiles: Sequence[tuple[TensorLoad, Var]],
    first_row: Expr,
    first_column: Expr,
    column: int,
) -> Stmt:
    """One vector along the store's contiguous axis, with the strided reads taken from tiles."""
    lane = Var("lane", "int32")
    mapping = {plan.across.var: first_row + lane, plan.along.var: first_column + int32(column)}

    def from_tile(read: TensorLoad) -> Expr | None:
        tile = _find(tiles, read)
        if tile is None:
            return None
        return tirx.BufferLoad(tile, [int32(column * plan.size) + lane])

    value = substitute(replace_loads(assignment.value, from_tile), mapping)
    offset = substitute(assignment.offset, mapping)
    store = tirx.BufferStore(assignment.buffer, value, [offset])
    return tirx.For(lane, int32(0), int32(plan.size), ForKind.VECTORIZED, store)


def _find(tiles: Sequence[tuple[TensorLoad, Var]], read: TensorLoad) -> Var | None:
    return next((tile for r, tile in tiles if tvm_ffi.structural_equal(r, read)), None)


def _new_tile(read: TensorLoad, size: int, statements: list[Stmt]) -> Var:
    tile = loops.local_buffer("tile", (size * size,), str(read.ty.dtype))
    statements.append(loops.allocate_on_stack(tile))
    return tile


def _store_vector(tile: Var, row: int, vector: Expr, size: int) -> Stmt:
    return tirx.BufferStore(tile, vector, [loops.ramp(row * size, size)])


def _transposed(tile: Var, read: TensorLoad, size: int, statements: list[Stmt]) -> Var:
    """A tile with rows and columns exchanged, by exchanging ever smaller blocks.

    In step `block`, rows k and k + block exchange the blocks that lie on the
    other side of the diagonal: log2(size) steps of `size` two-vector shuffles.
    """
    block = size // 2
    while block:
        result = _new_tile(read, size, statements)
        for low in (k for k in range(size) if not k & block):
            pair = [
                tirx.BufferLoad(tile, [loops.ramp(row * size, size)]) for row in (low, low + block)
            ]
            upper = [j if not j & block else size + j - block for j in range(size)]
            lower = [j + block if not j & block else size + j for j in range(size)]
            for row, order in ((low, upper), (low + block, lower)):
                shuffled = tirx.Shuffle(pair, [int32(j) for j in order])
                statements.append(_store_vector(result, row, shuffled, size))
        tile = result
        block //= 2
    return tile
