"""Vectors across two axes, for stores whose contiguous axis is shorter than a vector.

    out[.., w, e] = f(in[e, w])  with few e      (an image made channels-last)
    out[.., w, e] = f(in[w, 7, e])               (pixels gathered in pairs)

A block of `w` together with all `e` is contiguous in the output. What is not in
that order in an input is first brought into it, in registers; then the
arithmetic and the stores run over full vectors.
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
from tinsmith.targets.cpu.expressions import int32, linear_form, loads, replace_loads, substitute
from tinsmith.targets.cpu.program import Axis

_FEWEST = 4


@dataclass(frozen=True)
class InterleavePlan:
    """Blocks of `size` positions of `outer`, each with all positions of `inner`."""

    outer: Axis
    inner: Axis
    size: int

    @property
    def lanes(self) -> int:
        """Elements of one block."""
        return self.size * self.inner.extent


def plan_interleave(box: Box, lanes: int) -> InterleavePlan | None:
    """How to join two axes of `box`, or None if its contiguous axis is long enough."""
    if len(box.assignments) != 1 or len(box.axes) < 2:
        return None
    stored = linear_form(box.assignments[0].offset)
    inner = next((a for a in box.axes if stored.stride(a.var) == 1), None)
    if inner is None or stored.rest or inner.extent * 2 > lanes:
        return None
    outer = next((a for a in box.axes if stored.stride(a.var) == inner.extent), None)
    if outer is None or {outer.var, inner.var} & opaque_variables(box):
        return None
    size = 1
    while size * 2 <= min(outer.extent, lanes):
        size *= 2
    return InterleavePlan(outer, inner, size) if size >= _FEWEST else None


def interleaved_blocks(box: Box, plan: InterleavePlan) -> tuple[list[Axis], Stmt]:
    """The loops (outermost first, all may run in parallel) and the body of one block."""
    blocks = Axis(Var("blocks", "int32"), -(-plan.outer.extent // plan.size))
    start: Expr = blocks.var * int32(plan.size)
    if plan.outer.extent % plan.size:
        start = tirx.min(start, int32(plan.outer.extent - plan.size))
    others = [a for a in box.axes if a is not plan.outer and a is not plan.inner]
    return [*others, blocks], _block(box.assignments[0], plan, start)


def _block(assignment: Assignment, plan: InterleavePlan, start: Expr) -> Stmt:
    statements: list[Stmt] = []
    gathered: list[tuple[TensorLoad, Var]] = []
    for read in loads(assignment.value):
        if _find(gathered, read) is None and not _in_order(read, plan):
            gathered.append((read, _gather(read, plan, start, statements)))
    lane = Var("lane", "int32")

    def element(read: TensorLoad) -> Expr:
        buffer = _find(gathered, read)
        if buffer is not None:
            return tirx.BufferLoad(buffer, [lane])
        return tirx.BufferLoad(read.source, [_joined(read.indices[0], plan, start, lane)])

    value = replace_loads(assignment.value, element)
    offset = _joined(assignment.offset, plan, start, lane)
    store = tirx.BufferStore(assignment.buffer, value, [offset])
    vector = tirx.For(lane, int32(0), int32(plan.lanes), ForKind.VECTORIZED, store)
    return loops.sequence([*statements, vector])


def _joined(offset: Expr, plan: InterleavePlan, start: Expr, lane: Expr) -> Expr:
    """An address that runs through the block as if both axes were one."""
    form = linear_form(offset)
    first = substitute(offset, {plan.outer.var: start, plan.inner.var: int32(0)})
    stride = form.stride(plan.inner.var)
    return first if stride == 0 else first + lane * int32(stride)


def _in_order(read: TensorLoad, plan: InterleavePlan) -> bool:
    form = linear_form(read.indices[0])
    return form.stride(plan.outer.var) == form.stride(plan.inner.var) * plan.inner.extent


def _find(gathered: Sequence[tuple[TensorLoad, Var]], read: TensorLoad) -> Var | None:
    return next((b for r, b in gathered if tvm_ffi.structural_equal(r, read)), None)


def _gather(read: TensorLoad, plan: InterleavePlan, start: Expr, statements: list[Stmt]) -> Var:
    """A buffer with the block's elements of one input, in the order of the output."""
    dtype = str(read.ty.dtype)
    result = loops.local_buffer("block", (plan.lanes,), dtype)
    statements.append(loops.allocate_on_stack(result))
    form = linear_form(read.indices[0])
    inner = plan.inner.extent

    def at(outer: int, position: int) -> Expr:
        mapping = {plan.outer.var: start + int32(outer), plan.inner.var: int32(position)}
        return substitute(read.indices[0], mapping)

    if form.stride(plan.outer.var) == 1 and inner > 1:
        vectors = [
            tirx.BufferLoad(read.source, [loops.ramp(at(0, e), plan.size)]) for e in range(inner)
        ]
        order = [int32((i % inner) * plan.size + i // inner) for i in range(plan.lanes)]
        whole = tirx.Shuffle(vectors, order)
        statements.append(tirx.BufferStore(result, whole, [loops.ramp(0, plan.lanes)]))
        return result
    contiguous = form.stride(plan.inner.var) == 1
    for w in range(plan.size):
        if contiguous:
            part = tirx.BufferLoad(read.source, [loops.ramp(at(w, 0), inner)])
            statements.append(tirx.BufferStore(result, part, [loops.ramp(w * inner, inner)]))
            continue
        for e in range(inner):
            one = tirx.BufferLoad(read.source, [at(w, e)])
            statements.append(tirx.BufferStore(result, one, [int32(w * inner + e)]))
    return result
