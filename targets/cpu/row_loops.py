"""Loops for row programs: one pass over a row per dependent reduction, all vectorised.

Lanes hold either parts of one row (the accumulators are combined at the end of
the row) or different rows (nothing is ever combined across lanes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import ForKind, Stmt, Var

from tinsmith.targets.buffers import buffer_dtype, buffer_shape
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.accumulators import Accumulators, Pass, Step
from tinsmith.targets.cpu.domain import (
    Assignment,
    Box,
    collapse,
    cut_at_conditions,
    flat_offset,
    order_axes,
    split_at_divisions,
)
from tinsmith.targets.cpu.elementwise_loops import (
    PARALLEL_COST,
    TASKS_PER_CORE,
    for_loop,
    lane_axis,
    nest,
    point_cost,
    vector_lanes,
)
from tinsmith.targets.cpu.expressions import (
    int32,
    loads,
    replace_loads,
    substitute,
)
from tinsmith.targets.cpu.program import Axis, Stage
from tinsmith.targets.cpu.row_program import RowProgram
from tinsmith.targets.spec import TargetSpec

# Independent accumulators hide the latency of an addition.
_ACCUMULATORS = 4


@dataclass(frozen=True)
class RowSchedule:
    """Vector operations per step along the lane axis (`unroll`)."""

    unroll: int = _ACCUMULATORS


def row_work(rows: RowProgram) -> int:
    """Cost of the whole program, in the unit of `point_cost`."""
    return sum(
        s.points * point_cost([Assignment(s.buffer, int32(0), s.value)])
        for s in rows.program.stages
    )


def emit_rows(
    rows: RowProgram, flat: Mapping[Var, Var], spec: TargetSpec, schedule: RowSchedule
) -> list[Stmt]:
    """The loops of all rows. `flat` has the flat views of all buffers that outlive a row."""
    parallel = spec.cores > 1 and row_work(rows) >= PARALLEL_COST
    if rows.lane_is_row:
        return _rows_in_lanes(rows, flat, spec, schedule, parallel)
    body = _RowInLanes(rows, flat, spec, schedule).body()
    return [nest(rows.rows, body, spec, parallel)]


def _local_shape(rows: RowProgram, stage: Stage) -> list[tuple[int, int]]:
    """(dimension, extent) of the buffer's dimensions that are not row axes."""
    row_vars = {a.var for a in rows.rows}
    dims = []
    for dim, (i, extent) in enumerate(zip(stage.indices, buffer_shape(stage.buffer), strict=True)):
        if not (isinstance(i, Var) and i in row_vars) and extent > 1:
            dims.append((dim, extent))
    return dims


class _Locals:
    """Buffers that live for one row (or for one vector of rows)."""

    def __init__(self, rows: RowProgram, flat: Mapping[Var, Var], width: int) -> None:
        self.width = width
        self._flat = flat
        self.buffers: dict[Var, Var] = {}
        self._dims: dict[Var, list[tuple[int, int]]] = {}
        for stage in rows.program.stages:
            if rows.is_local(stage.buffer) and stage.buffer not in flat:
                dims = _local_shape(rows, stage)
                size = math.prod(extent for _, extent in dims) * width
                self._dims[stage.buffer] = dims
                self.buffers[stage.buffer] = loops.local_buffer(
                    stage.name, (size,), buffer_dtype(stage.buffer)
                )

    def place(self, buffer: Var, indices: Sequence[Expr], lane: Expr) -> tuple[Var, Expr]:
        """The flat buffer and address of an element."""
        if buffer in self._flat:
            return self._flat[buffer], flat_offset(buffer, indices)
        offset: Expr = int32(0)
        stride = self.width
        for dim, extent in reversed(self._dims[buffer]):
            offset = indices[dim] * int32(stride) + offset
            stride *= extent
        return self.buffers[buffer], offset + lane

    def flatten(self, expr: Expr, lane: Expr) -> Expr:
        """`expr` with all reads turned into reads of flat or local buffers."""
        known = set(self._flat) | set(self.buffers)

        def flat_read(read: TensorLoad) -> Expr | None:
            if read.source not in known:
                return None
            buffer, offset = self.place(read.source, list(read.indices), lane)
            return tirx.BufferLoad(buffer, [offset])

        return replace_loads(expr, flat_read)


def _passes(rows: RowProgram, local: _Locals, lane: Expr) -> list[Pass]:
    """Groups the stages into passes over the row; a pass never needs its own reductions."""
    passes: list[Pass] = []
    for stage in rows.program.stages:
        buffer, offset = local.place(stage.buffer, list(stage.indices), lane)
        assignment = Assignment(buffer, offset, local.flatten(stage.value, lane))
        step = Step(stage, assignment, rows.inner(stage), stage.reduction)
        last = passes[-1] if passes else None
        same = last is not None and {a.var for a in last.inner} == {a.var for a in step.inner}
        if last is not None and same and not _needs_reduction_of(stage, last):
            last.steps.append(step)
        else:
            passes.append(Pass(step.inner, [step]))
    return passes


def _needs_reduction_of(stage: Stage, current: Pass) -> bool:
    reduced = {s.stage.buffer for s in current.steps if s.reduction is not None}
    return any(r.source in reduced for r in loads(stage.value))


def _boxes(current: Pass, context: tuple[Axis, ...]) -> list[Box]:
    box = Box(current.inner, tuple(s.assignment for s in current.steps), context)
    parts = cut_at_conditions(split_at_divisions(box))
    return [collapse(order_axes(split_at_divisions(part))).fresh() for part in parts]


class _RowInLanes:
    """Lanes hold consecutive elements of one row."""

    def __init__(
        self,
        rows: RowProgram,
        flat: Mapping[Var, Var],
        spec: TargetSpec,
        schedule: RowSchedule,
    ) -> None:
        self._rows = rows
        self._spec = spec
        self._schedule = schedule
        self._local = _Locals(rows, flat, 1)

    def body(self) -> Stmt:
        """Everything for one row."""
        statements: list[Stmt] = [loops.allocate_on_stack(b) for b in self._local.buffers.values()]
        for current in _passes(self._rows, self._local, int32(0)):
            statements.append(self._emit(current))
        return loops.sequence(statements)

    def _emit(self, current: Pass) -> Stmt:
        if not current.inner:
            return loops.sequence(
                tirx.BufferStore(s.assignment.buffer, s.assignment.value, [s.assignment.offset])
                for s in current.steps
            )
        lanes = vector_lanes(self._spec, [s.assignment for s in current.steps])
        accumulators = Accumulators(current, lanes, self._schedule.unroll)
        body = [self._box(box, current, accumulators) for box in _boxes(current, self._rows.rows)]
        return loops.sequence([*accumulators.begin(), *body, *accumulators.end()])

    def _box(self, box: Box, current: Pass, accumulators: Accumulators) -> Stmt:
        lane = lane_axis(box, self._spec)
        if lane is None:
            lane = Axis(Var("single", "int32"), 1)
            outer = list(box.axes)
        else:
            outer = [a for a in box.axes if a is not lane]
        repeated = math.prod(a.extent for a in outer) > 1
        statements: list[Stmt] = []
        position = 0
        for width in accumulators.widths(lane.extent):
            count = (lane.extent - position) // width
            if not count:
                continue
            start = position

            def chunk(i: Expr, start: int = start, width: int = width) -> Stmt:
                first = int32(start) if loops.is_zero(i) else i * int32(width) + int32(start)
                return self._chunk(box, current, accumulators, lane, first, width)

            statements.append(loops.serial("vector", count, chunk))
            position += count * width
        body = loops.sequence(statements)
        return nest(outer, body, self._spec, False) if repeated or outer else body

    def _chunk(
        self,
        box: Box,
        current: Pass,
        accumulators: Accumulators,
        lane: Axis,
        first: Expr,
        width: int,
    ) -> Stmt:
        variable = Var("lane", "int32")
        mapping = {lane.var: first + variable if width > 1 else first}
        within: Expr = variable if width > 1 else int32(0)
        statements = []
        for assignment, step in zip(box.assignments, current.steps, strict=True):
            value = substitute(assignment.value, mapping)
            if step.reduction is None:
                offset = substitute(assignment.offset, mapping)
                statements.append(tirx.BufferStore(assignment.buffer, value, [offset]))
            else:
                statements.append(accumulators.update(step, width, within, value))
        body = loops.sequence(statements)
        return body if width == 1 else for_loop(variable, width, body, ForKind.VECTORIZED)


def _rows_in_lanes(
    rows: RowProgram,
    flat: Mapping[Var, Var],
    spec: TargetSpec,
    schedule: RowSchedule,
    parallel: bool,
) -> list[Stmt]:
    """Lanes hold different rows: blocks along the lane axis, then what is left over."""
    assignments = [Assignment(s.buffer, int32(0), s.value) for s in rows.program.stages]
    lanes = vector_lanes(spec, assignments)
    extent = rows.lane.extent
    others = math.prod(a.extent for a in rows.rows if not a.var.same_as(rows.lane.var))
    unroll = schedule.unroll
    while unroll > 1 and (
        extent < lanes * unroll
        or (parallel and others * (extent // (lanes * unroll)) < spec.cores * TASKS_PER_CORE)
    ):
        unroll //= 2
    statements: list[Stmt] = []
    position = 0
    for width in (lanes * unroll, lanes, extent % lanes):
        count = (extent - position) // width if width else 0
        if not count:
            continue
        statements.append(_block_nest(rows, flat, spec, position, count, width, parallel))
        position += count * width
    return statements


def _block_nest(
    rows: RowProgram,
    flat: Mapping[Var, Var],
    spec: TargetSpec,
    start: int,
    count: int,
    width: int,
    parallel: bool,
) -> Stmt:
    """`count` blocks of `width` rows each, from row `start` of the lane axis on."""
    block = Axis(Var("block", "int32"), count)
    base: Expr = block.var * int32(width) + int32(start) if count > 1 else int32(start)
    lane = Var("lane", "int32")
    outer: list[Axis] = []
    mapping: dict[Var, Expr] = {}
    for axis in rows.rows:
        if axis.var.same_as(rows.lane.var):
            mapping[axis.var] = base + lane
            if count > 1:
                outer.append(block)
        else:
            fresh = Axis(Var(axis.var.name, "int32"), axis.extent)
            mapping[axis.var] = fresh.var
            outer.append(fresh)
    local = _Locals(rows, flat, width)
    context = (*outer, Axis(lane, width))
    statements: list[Stmt] = [loops.allocate_on_stack(b) for b in local.buffers.values()]
    for current in _passes(rows, local, lane):
        moved = Pass(
            current.inner,
            [
                replace(s, assignment=s.assignment.map(lambda e: substitute(e, mapping)))
                for s in current.steps
            ],
        )
        statements.extend(_block_pass(moved, context, lane, width, spec))
    return nest(outer, loops.sequence(statements), spec, parallel)


def _block_pass(
    current: Pass, context: tuple[Axis, ...], lane: Var, width: int, spec: TargetSpec
) -> list[Stmt]:
    statements: list[Stmt] = []

    def vector(stores: Sequence[Stmt]) -> Stmt:
        variable = Var("lane", "int32")
        value: Expr = variable if width > 1 else int32(0)
        body = loops.sequence(_substituted(s, {lane: value}) for s in stores)
        return body if width == 1 else for_loop(variable, width, body, ForKind.VECTORIZED)

    for step in current.steps:
        if step.reduction is not None:
            place, identity = step.assignment, step.reduction.identity
            clear = tirx.BufferStore(place.buffer, identity, [place.offset])
            statements.append(vector([clear]))
    for box in _boxes(current, context):
        stores: list[Stmt] = []
        for a, step in zip(box.assignments, current.steps, strict=True):
            value = a.value
            if step.reduction is not None:
                value = step.reduction.combine(tirx.BufferLoad(a.buffer, [a.offset]), value)
            stores.append(tirx.BufferStore(a.buffer, value, [a.offset]))
        statements.append(nest(box.axes, vector(stores), spec, False))
    return statements


def _substituted(statement: Stmt, mapping: Mapping[Var, Expr]) -> Stmt:
    offset = substitute(statement.indices[0], mapping)
    return tirx.BufferStore(statement.buffer, substitute(statement.value, mapping), [offset])
