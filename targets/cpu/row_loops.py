"""Loops for row programs: one pass over a row per dependent reduction, all vectorised.

Lanes hold either parts of one row (the accumulators are combined at the end of
the row) or different rows (nothing is ever combined across lanes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import ForKind, Stmt, Var

from targets.cpu import loops
from targets.cpu.domain import (
    Assignment,
    Box,
    collapse,
    cut_at_conditions,
    flat_offset,
    order_axes,
    split_at_divisions,
)
from targets.cpu.elementwise_loops import (
    PARALLEL_COST,
    TASKS_PER_CORE,
    for_loop,
    lane_axis,
    nest,
    point_cost,
    vector_lanes,
)
from targets.cpu.expressions import (
    int32,
    loads,
    replace_loads,
    substitute,
)
from targets.cpu.program import Axis, Reduction, Stage, buffer_dtype, buffer_shape
from targets.cpu.row_program import RowProgram
from targets.spec import TargetSpec

# Independent accumulators hide the latency of an addition.
_ACCUMULATORS = 4


@dataclass(frozen=True)
class RowSchedule:
    """Vector operations per step along the lane axis (`unroll`)."""

    unroll: int = _ACCUMULATORS


@dataclass
class _Step:
    """One stage on flat addresses; `reduction` is None for an elementwise one."""

    stage: Stage
    assignment: Assignment
    inner: tuple[Axis, ...]
    reduction: Reduction | None


@dataclass
class _Pass:
    """Steps that run in one loop over the row; no inner axes means once per row."""

    inner: tuple[Axis, ...]
    steps: list[_Step] = field(default_factory=list)


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
    for dim, (i, extent) in enumerate(
        zip(stage.indices, buffer_shape(stage.buffer), strict=True)
    ):
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


def _passes(rows: RowProgram, local: _Locals, lane: Expr) -> list[_Pass]:
    """Groups the stages into passes over the row; a pass never needs its own reductions."""
    passes: list[_Pass] = []
    for stage in rows.program.stages:
        buffer, offset = local.place(stage.buffer, list(stage.indices), lane)
        assignment = Assignment(buffer, offset, local.flatten(stage.value, lane))
        step = _Step(stage, assignment, rows.inner(stage), stage.reduction)
        last = passes[-1] if passes else None
        same = last is not None and {a.var for a in last.inner} == {a.var for a in step.inner}
        if last is not None and same and not _needs_reduction_of(stage, last):
            last.steps.append(step)
        else:
            passes.append(_Pass(step.inner, [step]))
    return passes


def _needs_reduction_of(stage: Stage, current: _Pass) -> bool:
    reduced = {s.stage.buffer for s in current.steps if s.reduction is not None}
    return any(r.source in reduced for r in loads(stage.value))


def _boxes(current: _Pass, context: tuple[Axis, ...]) -> list[Box]:
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

    def _emit(self, current: _Pass) -> Stmt:
        if not current.inner:
            return loops.sequence(
                tirx.BufferStore(s.assignment.buffer, s.assignment.value, [s.assignment.offset])
                for s in current.steps
            )
        lanes = vector_lanes(self._spec, [s.assignment for s in current.steps])
        accumulators = _Accumulators(current, lanes, self._schedule.unroll)
        body = [self._box(box, current, accumulators) for box in _boxes(current, self._rows.rows)]
        return loops.sequence([*accumulators.begin(), *body, *accumulators.end()])

    def _box(self, box: Box, current: _Pass, accumulators: _Accumulators) -> Stmt:
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
        current: _Pass,
        accumulators: _Accumulators,
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


class _Accumulators:
    """Vector accumulators of one pass: one set for each width of vector in use."""

    def __init__(self, current: _Pass, lanes: int, unroll: int) -> None:
        self._steps = [s for s in current.steps if s.reduction is not None]
        self._lanes = lanes
        self._unroll = max(1, unroll)
        self._buffers: dict[tuple[int, int], Var] = {}

    def widths(self, extent: int) -> list[int]:
        """Widths of the vectors that cover `extent`, each used as often as it fits."""
        wide = self._lanes * self._unroll
        rest = extent % self._lanes
        chosen = [wide] if self._steps and self._unroll > 1 else []
        chosen += [self._lanes, rest or 1]
        return chosen

    def update(self, step: _Step, width: int, lane: Expr, value: Expr) -> Stmt:
        """Adds `value` to the lane's accumulator."""
        buffer = self._buffer(step, width)
        combined = _step_of(step).combine(tirx.BufferLoad(buffer, [lane]), value)
        return tirx.BufferStore(buffer, combined, [lane])

    def _buffer(self, step: _Step, width: int) -> Var:
        key = (next(i for i, s in enumerate(self._steps) if s is step), width)
        if key not in self._buffers:
            self._buffers[key] = loops.local_buffer(
                f"{step.stage.name}_{width}", (width,), buffer_dtype(step.stage.buffer)
            )
        return self._buffers[key]

    def begin(self) -> list[Stmt]:
        """Allocates and clears the accumulators; to be called after all updates are built."""
        statements: list[Stmt] = []
        for number, step in enumerate(self._steps):
            for (owner, width), buffer in self._buffers.items():
                if owner == number:
                    statements.append(loops.allocate_on_stack(buffer))
                    statements.append(_fill(buffer, width, step))
        return statements

    def end(self) -> list[Stmt]:
        """Combines all accumulators of a step into its result."""
        statements: list[Stmt] = []
        for number, step in enumerate(self._steps):
            total: Expr | None = None
            for (owner, width), buffer in self._buffers.items():
                if owner == number:
                    part = _read(buffer, width)
                    for piece in _pieces(part, width, self._lanes, step):
                        total = piece if total is None else _step_of(step).combine(total, piece)
            if total is None:
                raise ValueError("a reduction without accumulators")
            result = _combine_lanes(total, self._lanes, step, statements)
            place = step.assignment
            statements.append(tirx.BufferStore(place.buffer, result, [place.offset]))
        return statements


def _step_of(step: _Step) -> Reduction:
    if step.reduction is None:
        raise ValueError("an elementwise step has no accumulator")
    return step.reduction


def _read(buffer: Var, width: int) -> Expr:
    """All of a buffer as one vector."""
    return tirx.BufferLoad(buffer, [loops.ramp(0, width)])


def _stored(value: Expr, lanes: int, step: _Step, statements: list[Stmt]) -> Expr:
    """The vector `value`, computed once.

    It goes through a buffer (a register in the end): TVM would substitute a bound
    variable into each of its uses.
    """
    buffer = loops.local_buffer("part", (lanes,), buffer_dtype(step.stage.buffer))
    statements.append(loops.allocate_on_stack(buffer))
    statements.append(tirx.BufferStore(buffer, value, [loops.ramp(0, lanes)]))
    return _read(buffer, lanes)


def _pieces(
    vector: Expr, width: int, lanes: int, step: _Step
) -> list[Expr]:
    """A vector as vectors of `lanes`, the last one filled up with the identity.

    Shuffles and not loads of parts: LLVM forwards a partly overlapping store
    through integer shifts, lane by lane.
    """
    if width == lanes:
        return [vector]
    if width == 1:
        fill = loops.splat(_step_of(step).identity, lanes)
        return [tirx.Shuffle([fill, vector], [int32(i) for i in (lanes, *range(1, lanes))])]
    pieces: list[Expr] = []
    for start in range(0, width, lanes):
        sources = [vector]
        if start + lanes > width:
            sources.append(loops.splat(_step_of(step).identity, lanes))
        pieces.append(tirx.Shuffle(sources, [int32(i) for i in range(start, start + lanes)]))
    return pieces


def _combine_lanes(vector: Expr, lanes: int, step: _Step, statements: list[Stmt]) -> Expr:
    """All lanes of a vector combined, in log2(lanes) steps."""
    while lanes > 1:
        whole = _stored(vector, lanes, step, statements)
        half = lanes // 2
        low, high = (
            tirx.Shuffle([whole], [int32(i) for i in range(start, start + half)])
            for start in (0, half)
        )
        vector = _step_of(step).combine(low, high)
        lanes = half
    return vector


def _fill(buffer: Var, width: int, step: _Step) -> Stmt:
    identity = _step_of(step).identity
    return _lanes(width, lambda v: tirx.BufferStore(buffer, identity, [v]))


def _lanes(width: int, body: Callable[[Expr], Stmt]) -> Stmt:
    if width == 1:
        return body(int32(0))
    variable = Var("lane", "int32")
    return for_loop(variable, width, body(variable), ForKind.VECTORIZED)


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
        moved = _Pass(
            current.inner,
            [
                replace(s, assignment=s.assignment.map(lambda e: substitute(e, mapping)))
                for s in current.steps
            ],
        )
        statements.extend(_block_pass(moved, context, lane, width, spec))
    return nest(outer, loops.sequence(statements), spec, parallel)


def _block_pass(
    current: _Pass, context: tuple[Axis, ...], lane: Var, width: int, spec: TargetSpec
) -> list[Stmt]:
    statements: list[Stmt] = []

    def vector(statement_of: Callable[[], list[Stmt]]) -> Stmt:
        variable = Var("lane", "int32")
        value: Expr = variable if width > 1 else int32(0)
        body = loops.sequence(_substituted(s, {lane: value}) for s in statement_of())
        return body if width == 1 else for_loop(variable, width, body, ForKind.VECTORIZED)

    for step in current.steps:
        if step.reduction is not None:
            place, identity = step.assignment, step.reduction.identity
            statements.append(
                vector(lambda p=place, i=identity: [tirx.BufferStore(p.buffer, i, [p.offset])])
            )
    for box in _boxes(current, context):

        def body(box: Box = box) -> list[Stmt]:
            result: list[Stmt] = []
            for a, step in zip(box.assignments, current.steps, strict=True):
                value = a.value
                if step.reduction is not None:
                    value = step.reduction.combine(tirx.BufferLoad(a.buffer, [a.offset]), value)
                result.append(tirx.BufferStore(a.buffer, value, [a.offset]))
            return result

        statements.append(nest(box.axes, vector(body), spec, False))
    return statements


def _substituted(statement: Stmt, mapping: Mapping[Var, Expr]) -> Stmt:
    offset = substitute(statement.indices[0], mapping)
    return tirx.BufferStore(statement.buffer, substitute(statement.value, mapping), [offset])

