"""Programs whose stages share their outer axes: reductions, softmax, normalisations.

Such a program handles one *row* at a time (all stages for one combination of the
shared axes), so that a row is read from memory once and everything between the
stages stays in cache or registers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import Var

from tinsmith.targets.buffers import buffer_dtype, buffer_shape
from tinsmith.targets.cpu.domain import flat_offset, split_axis, split_extents
from tinsmith.targets.cpu.expressions import (
    Simplifier,
    children,
    constant_value,
    cost,
    dtype_of,
    int32,
    linear_form,
    loads,
    replace_loads,
    substitute,
    variables,
)
from tinsmith.targets.cpu.program import Axis, Program, Stage, identity_axes, intermediate

# What a read along the vector lanes is worth, by its stride: one load, one broadcast, or a
# load for each lane.
_ACCESS_SCORES = {1: 2.0, 0: 0.5}
_STRIDED = -4.0


@dataclass(frozen=True)
class RowProgram:
    """`rows` are the axes that all stages share (the same variables in each stage).

    `lane` is the axis along which most of the traffic is contiguous; it is a
    row axis (lanes hold different rows) or an inner one (lanes hold parts of a row).
    `prologue` are small stages that are computed once, before the rows; their
    buffers are kept in memory.
    """

    program: Program
    rows: tuple[Axis, ...]
    lane: Axis
    prologue: tuple[Stage, ...] = ()

    @property
    def lane_is_row(self) -> bool:
        """Whether vector lanes hold different rows."""
        return any(self.lane.var.same_as(a.var) for a in self.rows)

    def inner(self, stage: Stage) -> tuple[Axis, ...]:
        """The axes of a stage that are not row axes."""
        rows = {a.var for a in self.rows}
        return tuple(a for a in stage.axes + stage.reduce_axes if a.var not in rows)

    def is_local(self, buffer: Var) -> bool:
        """Whether the buffer lives within one row: written here and no parameter."""
        return not self.program.is_output(buffer) and self.program.producer(buffer) is not None


def analyse(program: Program) -> RowProgram | None:
    """The row structure of a program with reductions; None if its stages share no rows."""
    prologue = _prologue(program)
    kept = tuple(s for s in program.stages if not any(s is p for p in prologue))
    program = _reduce_into_intermediates(replace(program, stages=kept))
    stages = [_split_at_divisions(s) for s in program.stages]
    program = replace(program, stages=tuple(stages))
    classes = _unify_axes(program)
    if classes is None:
        return None
    stages = [_renamed(s, classes) for s in stages]
    shared = set.intersection(*({a.var for a in s.axes} for s in stages))
    for stage in stages:
        if stage.reduction is not None and any(a.var not in shared for a in stage.axes):
            return None
    rows = tuple(a for a in stages[-1].axes if a.var in shared)
    program = replace(program, stages=tuple(stages))
    lane = _contiguous_axis(program)
    if lane is None:
        return None
    result = RowProgram(program, rows, lane, prologue)
    return _store_in_outputs(_hoist_invariants(result))


def _reduce_into_intermediates(program: Program) -> Program:
    """Gives reductions that write a parameter a buffer of their own, copied afterwards."""
    stages = list(program.stages)
    for stage in program.stages:
        dims = identity_axes(stage)
        if stage.reduction is None or not program.is_output(stage.buffer) or dims is None:
            continue
        output = stage.buffer
        own = intermediate(stage.name, buffer_shape(output), buffer_dtype(output))

        def moved(read: TensorLoad, old: Var = output, new: Var = own) -> Expr | None:
            return tirx.BufferLoad(new, read.indices) if read.source.same_as(old) else None

        axes = tuple(Axis(Var(a.var.name, "int32"), a.extent) for a in stage.axes)
        fresh = {a.var: b.var for a, b in zip(stage.axes, axes, strict=True)}
        indices = tuple(substitute(i, fresh) for i in stage.indices)
        copy = Stage(
            f"{stage.name}_copy", axes, (), output, indices, tirx.BufferLoad(own, list(indices))
        )
        stages = [
            replace(s, buffer=own)
            if s.buffer.same_as(output)
            else replace(s, value=replace_loads(s.value, moved))
            for s in stages
        ]
        where = next(i for i, s in enumerate(stages) if s.buffer.same_as(own))
        stages.insert(where + 1, copy)
    return replace(program, stages=tuple(stages))


def _prologue(program: Program) -> tuple[Stage, ...]:
    """Intermediates that depend on no reduction and are much smaller than what they feed."""
    most = max(s.points for s in program.stages)
    found: list[Stage] = []
    for stage in program.stages:
        if stage.reduction is not None or program.is_output(stage.buffer):
            continue
        sources = [program.producer(r.source) for r in loads(stage.value)]
        if stage.points * 4 <= most and all(
            p is None or any(p is f for f in found) for p in sources
        ):
            found.append(stage)
    return tuple(found)


def _split_at_divisions(stage: Stage) -> Stage:
    for _ in range(3):
        axes = stage.axes + stage.reduce_axes
        simplifier = Simplifier((a.var, a.extent) for a in axes)
        stage = replace(
            stage,
            value=simplifier.value(stage.value),
            indices=tuple(simplifier.index(i) for i in stage.indices),
        )
        mapping: dict[Var, Expr] = {}
        new_axes: dict[bool, list[Axis]] = {False: [], True: []}
        for reduced, group in ((False, stage.axes), (True, stage.reduce_axes)):
            for axis in group:
                found = _divisors([stage.value, *stage.indices], axis.var)
                parts = split_extents(axis.extent, found)
                if parts is None:
                    new_axes[reduced].append(axis)
                else:
                    new, mapping[axis.var] = split_axis(axis, parts)
                    new_axes[reduced].extend(new)
        if not mapping:
            return stage
        stage = replace(
            stage,
            axes=tuple(new_axes[False]),
            reduce_axes=tuple(new_axes[True]),
            value=substitute(stage.value, mapping),
            indices=tuple(substitute(i, mapping) for i in stage.indices),
        )
    return stage


def _divisors(expressions: list[Expr], axis: Var) -> set[int]:
    found: set[int] = set()

    def visit(node: Any) -> None:
        literal = constant_value(node.b)
        if literal and literal > 1 and variables(node.a) == {axis}:
            found.add(literal)

    tvm_ffi.structural_walk(expressions, ((tirx.FloorDiv, tirx.FloorMod), visit))
    return found


def _unify_axes(program: Program) -> dict[Var, Var] | None:
    """Maps every axis to a representative: axes that index the same dimension are one."""
    parent: dict[Var, Var] = {}
    extents = {a.var: a.extent for s in program.stages for a in s.axes + s.reduce_axes}

    def find(var: Var) -> Var:
        while var in parent:
            var = parent[var]
        return var

    for stage in program.stages:
        own = {a.var for a in stage.axes + stage.reduce_axes}
        for read in loads([stage.value, *stage.indices]):
            producer = program.producer(read.source)
            if producer is None:
                continue
            dims = identity_axes(producer)
            if dims is None:
                return None
            for axis, i in zip(dims, read.indices, strict=True):
                if axis is None:
                    continue
                if not isinstance(i, Var) or i not in own or extents[i] != axis.extent:
                    return None
                a, b = find(axis.var), find(i)
                if not a.same_as(b):
                    parent[a] = b
    result: dict[Var, Var] = {}
    for stage in program.stages:
        axes = stage.axes + stage.reduce_axes
        representatives = [find(a.var) for a in axes]
        if len(set(representatives)) != len(axes):
            return None  # a diagonal
        result.update({a.var: r for a, r in zip(axes, representatives, strict=True)})
    return result


def _renamed(stage: Stage, classes: dict[Var, Var]) -> Stage:
    def axes(group: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(classes[a.var], a.extent) for a in group)

    mapping: dict[Var, Expr] = dict(classes)
    return replace(
        stage,
        axes=axes(stage.axes),
        reduce_axes=axes(stage.reduce_axes),
        value=substitute(stage.value, mapping),
        indices=tuple(substitute(i, mapping) for i in stage.indices),
    )


def _contiguous_axis(program: Program) -> Axis | None:
    """The axis along which reads and writes of parameters are contiguous, or at least constant."""
    weights: dict[Var, float] = {}
    by_var: dict[Var, Axis] = {}
    for stage in program.stages:
        axes = stage.axes + stage.reduce_axes
        by_var.update({a.var: a for a in axes})
        places = [(r.source, r.indices) for r in loads(stage.value)]
        if stage.reduction is None:
            places.append((stage.buffer, stage.indices))
        for buffer, indices in places:
            if program.producer(buffer) is not None and not program.is_output(buffer):
                continue
            form = linear_form(flat_offset(buffer, indices))
            opaque = form.opaque_variables()
            for axis in axes:
                score = _ACCESS_SCORES.get(form.stride(axis.var), _STRIDED)
                if axis.var in opaque:
                    score = _STRIDED
                weights[axis.var] = weights.get(axis.var, 0) + score * stage.points
    if not weights:
        return None
    return by_var[max(weights, key=lambda v: (weights[v], by_var[v].extent))]


def _hoist_invariants(rows: RowProgram) -> RowProgram:
    """Moves what is the same for a whole row out of the row's loops.

    `x / sum` becomes `x * (1 / sum)`: one division per row instead of one per element.
    """
    stages: list[Stage] = []
    for stage in rows.program.stages:
        inner = {a.var for a in rows.inner(stage)}
        if not inner:
            stages.append(stage)
            continue
        hoisted: list[Stage] = []
        value = _hoist(stage.value, inner, rows, stage.name, hoisted)
        stages.extend(hoisted)
        stages.append(replace(stage, value=value))
    return replace(rows, program=replace(rows.program, stages=tuple(stages)))


def _hoist(value: Expr, inner: set[Var], rows: RowProgram, name: str, hoisted: list[Stage]) -> Expr:
    bound: set[Var] = set()
    tvm_ffi.structural_walk(value, (tirx.Let, lambda node: bound.add(node.var)))
    local = {s.buffer for s in rows.program.stages if rows.is_local(s.buffer)}

    def invariant(expr: Expr) -> bool:
        used = variables(expr)
        return not used & inner and not used & bound and bool(used & local)

    def scalar(expr: Expr) -> Expr:
        shape = [a.extent for a in rows.rows] or [1]
        indices: tuple[Expr, ...] = tuple(a.var for a in rows.rows) or (int32(0),)
        for known in hoisted:
            if tvm_ffi.structural_equal(known.value, expr):
                return tirx.BufferLoad(known.buffer, list(indices))
        buffer = intermediate(f"{name}_row", shape, dtype_of(expr))
        hoisted.append(Stage(f"{name}_row", rows.rows, (), buffer, indices, expr))
        return tirx.BufferLoad(buffer, list(indices))

    def walk(expr: Expr) -> Expr:
        if cost(expr) >= 3 and invariant(expr):
            return scalar(expr)
        if (
            isinstance(expr, tirx.Div)
            and dtype_of(expr) == "float32"
            and not isinstance(expr.b, tirx.FloatImm)
            and invariant(expr.b)
        ):
            return tirx.Mul(walk(expr.a), scalar(tirx.Div(tirx.const(1, "float32"), expr.b)))
        return _map_children(expr, walk)

    return walk(value)


def _map_children(expr: Expr, function: Any) -> Expr:
    if isinstance(expr, TensorLoad) or not children(expr):
        return expr
    own = children(expr)

    def visit(node: Any, mutator: Any) -> Any:
        if node.same_as(expr):
            return mutator.default_mutate(node)
        if any(node.same_as(child) for child in own):
            return function(node)
        return mutator.default_mutate(node)

    return tvm_ffi.structural_mutate(expr, [(Expr, visit)])


def _store_in_outputs(rows: RowProgram) -> RowProgram:
    """Keeps a row-sized intermediate in the output that is computed from it element by element."""
    stages = list(rows.program.stages)
    for position, stage in enumerate(stages):
        if stage.reduction is not None or not rows.inner(stage) or not rows.is_local(stage.buffer):
            continue
        output = _overwriting(rows, stages, position)
        if output is None:
            continue
        place, indices = output.buffer, list(output.indices)
        buffer = stage.buffer

        def moved(read: TensorLoad, b: Var = buffer, p: Var = place, i: Any = indices) -> Any:
            return tirx.BufferLoad(p, i) if read.source.same_as(b) else None

        stages = [replace(s, value=replace_loads(s.value, moved)) for s in stages]
        stages[position] = replace(stages[position], buffer=place, indices=output.indices)
    return replace(rows, program=replace(rows.program, stages=tuple(stages)))


def _overwriting(rows: RowProgram, stages: list[Stage], position: int) -> Stage | None:
    stage = stages[position]
    readers = [s for s in stages if any(r.source.same_as(stage.buffer) for r in loads(s.value))]
    last = readers[-1] if readers else None
    if last is None or last.reduction is not None or not rows.program.is_output(last.buffer):
        return None
    same_axes = {a.var for a in last.axes} == {a.var for a in stage.axes}
    if not same_axes or buffer_dtype(last.buffer) != buffer_dtype(stage.buffer):
        return None
    if any(a.buffer.same_as(last.buffer) for a in stages if a is not last):
        return None
    return last
