"""Loop nests for elementwise domains: vector lanes, remainders, parallel tasks.

Every function returns plain loops (no sblocks). A vector loop is one
`vectorized` loop over a literal number of lanes; the remainder of a row is
covered by a last vector that overlaps its neighbour, or by a shorter vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.ir import Call, Expr
from tvm.tirx import ForKind, Stmt, Var

from tinsmith.targets.buffers import element_bytes
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.domain import (
    Assignment,
    Box,
    accesses,
    collapse,
    cut_at_conditions,
    order_axes,
    split_at_divisions,
)
from tinsmith.targets.cpu.expressions import (
    CONDITIONAL,
    children,
    cost,
    int32,
    loads,
    substitute,
    variables,
)
from tinsmith.targets.cpu.interleave_loops import interleaved_blocks, plan_interleave
from tinsmith.targets.cpu.program import Axis
from tinsmith.targets.cpu.transpose_loops import plan_transpose, transposed_tiles
from tinsmith.targets.cpu.word_loops import plan_words, word_blocks
from tinsmith.targets.spec import TargetSpec

# Handing work to another core costs 1 to 3 microseconds: below this many units (about 5 us) of
# arithmetic and memory accesses one core is done sooner.
PARALLEL_COST = 1 << 19
TASKS_PER_CORE = 4


def vector_lanes(spec: TargetSpec, assignments: Sequence[Assignment]) -> int:
    """Lanes of one vector operation, given by the widest element type involved."""
    widest = 1
    for a in assignments:
        widest = max(widest, element_bytes(a.buffer))
        for read in loads(a.value):
            widest = max(widest, tvm.DataType(str(read.ty.dtype)).bits // 8)
    widest = min(widest, 4) if widest != 8 else 8
    return max(4, spec.vector_bits // 8 // widest)


def point_cost(assignments: Sequence[Assignment]) -> int:
    """Cost of one point: arithmetic plus memory accesses."""
    return sum(cost(a.value) + 2 * len(loads(a.value)) + 2 for a in assignments)


def for_loop(var: Var, extent: Expr | int, body: Stmt, kind: ForKind = ForKind.SERIAL) -> Stmt:
    """A loop over an existing variable."""
    return tirx.For(var, int32(0), loops.index(extent), kind, body)


def emit_box(box: Box, spec: TargetSpec, parallel: bool = True) -> list[Stmt]:
    """Loop nests for all assignments of `box`, cut, collapsed and vectorised."""
    box = split_at_divisions(box)
    words = plan_words(box, spec)
    if words is not None:
        parallel = parallel and _is_worth_sharing(box, spec)
        return [nest(*word_blocks(box, words), spec, parallel)]
    statements = []
    for part in cut_at_conditions(box):
        regular = collapse(order_axes(split_at_divisions(part)))
        statements.append(_emit_regular(regular.fresh(), spec, parallel))
    return statements


def _emit_regular(box: Box, spec: TargetSpec, parallel: bool) -> Stmt:
    parallel = parallel and _is_worth_sharing(box, spec)
    lanes = vector_lanes(spec, box.assignments)
    if may_overlap(box.assignments):
        transpose = plan_transpose(box, lanes)
        if transpose is not None:
            return nest(*transposed_tiles(box, transpose), spec, parallel)
        interleave = plan_interleave(box, lanes)
        if interleave is not None:
            return nest(*interleaved_blocks(box, interleave), spec, parallel)
    lane = lane_axis(box, spec)
    outer = [a for a in box.axes if a is not lane]
    if lane is None:
        body = loops.sequence(_store(a) for a in box.assignments)
        return nest(outer, body, spec, parallel)
    outer_points = math.prod(a.extent for a in outer)
    if parallel and outer_points < spec.cores * TASKS_PER_CORE and lane.extent >= 4 * lanes:
        return _splitlane_axis(box, outer, lane, lanes, spec)
    return nest(outer, vector_row(box.assignments, lane, lanes), spec, parallel)


def _is_worth_sharing(box: Box, spec: TargetSpec) -> bool:
    """Whether there is enough to do for several cores."""
    return spec.cores > 1 and box.points * point_cost(box.assignments) >= PARALLEL_COST


def _store(a: Assignment) -> Stmt:
    return tirx.BufferStore(a.buffer, a.value, [a.offset])


def lane_axis(box: Box, spec: TargetSpec) -> Axis | None:
    """The axis to vectorise: the one along which most accesses are contiguous."""
    if not box.axes:
        return None
    forms = accesses(box)
    lanes = vector_lanes(spec, box.assignments)
    stores = len(box.assignments)

    def score(axis: Axis) -> float:
        total = 0.0
        for number, form in enumerate(forms):
            stride = form.stride(axis.var)
            if axis.var in form.opaque_variables():
                total -= 2
            elif stride == 1:
                total += 3 if number < stores else 2
            elif stride == 0 and number >= stores:
                total += 1
            elif number < stores:
                total -= 2
        return total * min(1.0, axis.extent / lanes)

    candidates = [a for a in box.axes if not lane_dependent_branch(box.assignments, a.var)]
    if not candidates:
        return None
    return max(reversed(candidates), key=score)


def lane_dependent_branch(assignments: Sequence[Assignment], lane: Var) -> bool:
    """Whether a conditional depends on `lane`; such a loop would be scalarised anyway."""

    def walk(node: Expr) -> bool:
        if (
            isinstance(node, Call)
            and node.op.name == CONDITIONAL
            and lane in variables(node.args[0])
        ):
            return True
        return any(walk(child) for child in children(node))

    return any(walk(a.value) for a in assignments)


def vector_statement(
    assignments: Sequence[Assignment], axis: Axis, start: Expr | int, width: int
) -> Stmt:
    """The assignments for `width` consecutive values of `axis` from `start` on."""
    if width == 1:
        mapping = {axis.var: loops.index(start)}
        return loops.sequence(_store(a.map(lambda e: substitute(e, mapping))) for a in assignments)
    variable = Var("lane", "int32")
    position = variable if loops.is_zero(start) else loops.index(start) + variable
    mapping = {axis.var: position}
    body = loops.sequence(_store(a.map(lambda e: substitute(e, mapping))) for a in assignments)
    return for_loop(variable, width, body, ForKind.VECTORIZED)


def vector_row(assignments: Sequence[Assignment], axis: Axis, lanes: int) -> Stmt:
    """All values of `axis`, `lanes` at a time."""
    full, rest = divmod(axis.extent, lanes)
    statements = []
    if full:
        statements.append(
            loops.serial(
                "vector",
                full,
                lambda i: vector_statement(
                    assignments, axis, 0 if loops.is_zero(i) else i * int32(lanes), lanes
                ),
            )
        )
    if rest:
        if full and may_overlap(assignments):
            statements.append(vector_statement(assignments, axis, axis.extent - lanes, lanes))
        else:
            statements.append(vector_statement(assignments, axis, full * lanes, rest))
    return loops.sequence(statements)


def may_overlap(assignments: Sequence[Assignment]) -> bool:
    """Whether computing a point twice is harmless: nothing stored is read."""
    stored = {a.buffer for a in assignments}
    return not any(r.source in stored for a in assignments for r in loads(a.value))


def nest(outer: Sequence[Axis], body: Stmt, spec: TargetSpec, parallel: bool) -> Stmt:
    """`body` inside loops over `outer`; the outermost ones fused and parallel if asked for."""
    if not parallel or not outer:
        for axis in reversed(outer):
            body = for_loop(axis.var, axis.extent, body)
        return body
    fused = 1
    count = 0
    while count < len(outer) and fused < spec.cores * TASKS_PER_CORE * 2:
        fused *= outer[count].extent
        count += 1
    for axis in reversed(outer[count:]):
        body = for_loop(axis.var, axis.extent, body)
    return parallel_over(outer[:count], body)


def parallel_over(axes: Sequence[Axis], body: Stmt) -> Stmt:
    """One parallel loop over the product of `axes`, whose variables are bound inside."""
    if len(axes) == 1:
        return for_loop(axes[0].var, axes[0].extent, body, ForKind.PARALLEL)
    task = Var("task", "int32")
    statements: list[Stmt] = []
    stride = 1
    for number, axis in enumerate(reversed(axes)):
        value: Expr = task if stride == 1 else tirx.floordiv(task, int32(stride))
        if number != len(axes) - 1:
            value = tirx.floormod(value, int32(axis.extent))
        statements.append(tirx.Bind(axis.var, value))
        stride *= axis.extent
    return for_loop(task, stride, loops.sequence([*statements, body]), ForKind.PARALLEL)


def _splitlane_axis(
    box: Box, outer: Sequence[Axis], lane: Axis, lanes: int, spec: TargetSpec
) -> Stmt:
    """Parallel over parts of a long innermost axis; what is left over follows serially."""
    vectors = lane.extent // lanes
    tasks = min(spec.cores * TASKS_PER_CORE, vectors)

    def part(task: Expr) -> Stmt:
        first = tirx.floordiv(task * int32(vectors), int32(tasks))
        last = tirx.floordiv((task + int32(1)) * int32(vectors), int32(tasks))

        def body(start: Expr) -> Stmt:
            def one(i: Expr) -> Stmt:
                return vector_statement(box.assignments, lane, (start + i) * int32(lanes), lanes)

            return loops.serial("vector", last - start, one)

        return loops.bind("first", first, body)

    split = Axis(Var("part", "int32"), tasks)
    statements = [parallel_over([*outer, split], part(split.var))]
    rest = lane.extent - vectors * lanes
    if rest:
        tail = box.fresh()
        by_name = dict(zip((a.var for a in box.axes), tail.axes, strict=True))
        tail_lane = by_name[lane.var]
        overlap = may_overlap(box.assignments)
        start, width = (lane.extent - lanes, lanes) if overlap else (vectors * lanes, rest)
        body = vector_statement(tail.assignments, tail_lane, start, width)
        statements.append(nest([by_name[a.var] for a in outer], body, spec, False))
    return loops.sequence(statements)
