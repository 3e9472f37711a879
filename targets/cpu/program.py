"""A fused function as a list of stages, each one loop nest that computes one buffer.

`FuseTIR` leaves a sequence of sblocks over perfect loop nests. `parse` turns them
into stages with 32-bit indices, no unit axes and explicit reductions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import PrimFunc, Stmt, Var

from tinsmith.targets.buffers import (
    buffer_dtype,
    buffer_shape,
    buffer_size,
    element_bytes,
    is_static,
)
from tinsmith.targets.cpu.expressions import (
    WideIndexError,
    cost,
    int32,
    loads,
    narrow,
    substitute,
    widen,
)
from tinsmith.targets.cpu.nan_propagation import beginning, highest, lowest

_COMBINERS = {
    tirx.Add: "add",
    tirx.Max: "max",
    tirx.Min: "min",
    tirx.Mul: "mul",
    tirx.And: "and",
    tirx.Or: "or",
}
_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """One loop: its variable (int32) runs from 0 to `extent - 1`."""

    var: Var
    extent: int


@dataclass(frozen=True)
class Reduction:
    """How contributions are combined: `combiner` is add, mul, max, min, and, or."""

    combiner: str
    identity: Expr

    def combine(self, left: Expr, right: Expr) -> Expr:
        """One step of the reduction."""
        node = next(kind for kind, name in _COMBINERS.items() if name == self.combiner)
        return node(left, right)


@dataclass(frozen=True)
class Stage:
    """`buffer[indices] = value` for all `axes`; combined over `reduce_axes` if there are any."""

    name: str
    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    buffer: Var
    indices: tuple[Expr, ...]
    value: Expr
    reduction: Reduction | None = None

    @property
    def points(self) -> int:
        """Number of evaluations of `value`."""
        return math.prod(a.extent for a in self.axes + self.reduce_axes)


@dataclass(frozen=True)
class Program:
    """The stages of `function` in order; buffers that are no parameters are intermediate."""

    function: PrimFunc
    stages: tuple[Stage, ...]

    def producer(self, buffer: Var) -> Stage | None:
        """The stage that computes an intermediate or output buffer."""
        return next((s for s in self.stages if s.buffer.same_as(buffer)), None)

    def is_output(self, buffer: Var) -> bool:
        """Whether `buffer` is a parameter of the function."""
        return any(buffer.same_as(p) for p in self.function.params)

    @property
    def flops(self) -> int:
        """Arithmetic operations of one call (transcendental functions count as several)."""
        return sum(s.points * (cost(s.value) + (s.reduction is not None)) for s in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters, read or written once each."""
        return sum(buffer_size(p) * element_bytes(p) for p in self.function.params)


def intermediate(name: str, shape: Sequence[int], dtype: str) -> Var:
    """A new intermediate buffer."""
    return tirx.decl_buffer(tuple(shape), dtype, name)


class _NotAProgramError(Exception):
    """The function has a construct that stages cannot express."""


def parse(function: PrimFunc) -> Program | None:
    """The stages of a fused function with static shapes, or None if it has other constructs."""
    try:
        if any(not is_static(p) or buffer_size(p) > _LARGEST_INDEX for p in function.params):
            return None
        stages: list[Stage] = []
        for statement in _top_level(function):
            stages.extend(_parse_nest(statement))
    except (_NotAProgramError, WideIndexError):
        return None
    program = Program(function, tuple(stages))
    written = [s.buffer for s in stages]
    if len(set(written)) != len(written):
        return None
    return program


def _top_level(function: PrimFunc) -> list[Stmt]:
    body = function.body
    if not isinstance(body, SBlockRealize) or body.iter_values or body.block.match_buffers:
        raise _NotAProgramError
    for buffer in body.block.alloc_buffers:
        if not is_static(buffer) or buffer_size(buffer) > _LARGEST_INDEX:
            raise _NotAProgramError
    inner = body.block.body
    return list(inner.seq) if isinstance(inner, tirx.SeqStmt) else [inner]


def _parse_nest(statement: Stmt) -> list[Stage]:
    extents: dict[Var, int] = {}
    while isinstance(statement, tirx.For):
        if not isinstance(statement.extent, tirx.IntImm) or int(statement.min) != 0:
            raise _NotAProgramError
        extents[statement.loop_var] = int(statement.extent)
        statement = statement.body
    if not isinstance(statement, SBlockRealize):
        raise _NotAProgramError
    block = statement.block
    if block.alloc_buffers or block.match_buffers or not _always(statement.predicate):
        raise _NotAProgramError
    axes: dict[Var, Expr] = {}
    spatial: list[Axis] = []
    reduced: list[Axis] = []
    for iter_var, value in zip(block.iter_vars, statement.iter_values, strict=True):
        if isinstance(value, tirx.IntImm) and int(value) == 0:
            axes[iter_var.var] = int32(0)
            continue
        if value not in extents or iter_var.iter_type not in (0, 2):
            raise _NotAProgramError
        extent = extents.pop(value)
        if extent == 1:
            axes[iter_var.var] = int32(0)
            continue
        axis = Axis(Var(iter_var.var.name, "int32"), extent)
        axes[iter_var.var] = axis.var
        (spatial if iter_var.iter_type == 0 else reduced).append(axis)
    if any(extent != 1 for extent in extents.values()):
        raise _NotAProgramError
    return _parse_block(block, axes, tuple(spatial), tuple(reduced))


def _always(predicate: Expr | bool) -> bool:
    return predicate is True or (isinstance(predicate, tirx.IntImm) and int(predicate) == 1)


def _parse_block(
    block: SBlock, axes: dict[Var, Expr], spatial: tuple[Axis, ...], reduced: tuple[Axis, ...]
) -> list[Stage]:
    body = list(block.body.seq) if isinstance(block.body, tirx.SeqStmt) else [block.body]
    bound: dict[Var, Expr] = {}
    stores: list[tirx.BufferStore] = []
    for statement in body:
        if isinstance(statement, tirx.Bind):
            bound[statement.var] = substitute(statement.value, bound)
        elif isinstance(statement, tirx.BufferStore):
            stores.append(statement)
        else:
            raise _NotAProgramError
    writes = [(s.buffer, [narrow(i, axes) for i in s.indices]) for s in stores]
    values = [widen(substitute(s.value, bound), axes) for s in stores]
    if block.init is None:
        if len(stores) != 1 or any(
            read.source.same_as(stores[0].buffer) for read in loads(values[0])
        ):
            raise _NotAProgramError
        buffer, indices = writes[0]
        return [Stage(block.name_hint, spatial + reduced, (), buffer, tuple(indices), values[0])]
    init = block.init.seq if isinstance(block.init, tirx.SeqStmt) else [block.init]
    identities = {s.buffer: s.value for s in init if isinstance(s, tirx.BufferStore)}
    if len(identities) != len(stores):
        raise _NotAProgramError
    stages = []
    for (buffer, indices), value in zip(writes, values, strict=True):
        found = _reduction_step(buffer, value)
        if found is None or any(r.source in identities for r in loads(found[1])):
            if len(stores) == 2:
                return _index_of_extremum(block.name_hint, writes, values, spatial, reduced)
            raise _NotAProgramError
        combiner, contribution = found
        if not reduced:
            stages.append(Stage(block.name_hint, spatial, (), buffer, tuple(indices), contribution))
            continue
        reduction = Reduction(combiner, beginning(identities[buffer]))
        stages.append(
            Stage(
                block.name_hint, spatial, reduced, buffer, tuple(indices), contribution, reduction
            )
        )
    return stages


def _reduction_step(buffer: Var, value: Expr) -> tuple[str, Expr] | None:
    combiner = _COMBINERS.get(type(value))
    if combiner is None:
        return None
    for accumulated, contribution in ((value.a, value.b), (value.b, value.a)):
        if isinstance(accumulated, TensorLoad) and accumulated.source.same_as(buffer):
            return combiner, contribution
    return None


def _index_of_extremum(
    name: str,
    writes: list[tuple[Var, list[Expr]]],
    values: list[Expr],
    spatial: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
) -> list[Stage]:
    """argmax and argmin as two reductions that vectorise.

    `topi` keeps the pair (index, value) and updates it serially. Here the
    extremum is found first; the index is the least one whose value equals it, or is NaN.
    """
    (index_buffer, index_indices), (value_buffer, value_indices) = writes
    chosen, best = values
    if not (isinstance(chosen, tirx.Select) and isinstance(best, tirx.Select)):
        raise _NotAProgramError
    keep, condition = best.condition, chosen.condition
    if not isinstance(keep, (tirx.GT, tirx.LT)) or not isinstance(condition, tirx.Or):
        raise _NotAProgramError
    tie = condition.b
    earlier = isinstance(tie, tirx.And) and isinstance(tie.b, tirx.LT)
    if not earlier or not tvm_ffi.structural_equal(condition.a, keep):
        raise _NotAProgramError
    candidate, position = keep.b, chosen.false_value
    if any(r.source in (index_buffer, value_buffer) for r in loads([candidate, position])):
        raise _NotAProgramError
    if not reduced:
        return [
            Stage(f"{name}_value", spatial, (), value_buffer, tuple(value_indices), candidate),
            Stage(name, spatial, (), index_buffer, tuple(index_indices), position),
        ]
    dtype = buffer_dtype(value_buffer)
    largest = isinstance(keep, tirx.GT)
    identity = lowest(dtype) if largest else highest(dtype)
    extremum = Reduction("max" if largest else "min", identity)
    first = intermediate(f"{name}_first", buffer_shape(index_buffer), "int32")
    none = int32(_LARGEST_INDEX)
    equal = tirx.EQ(candidate, tirx.BufferLoad(value_buffer, value_indices))
    where = narrow(position, {a.var: a.var for a in reduced})
    match = tirx.Select(equal, where, none)
    if "float" in dtype:
        # NaN, which the extremum of a row with a NaN is, equals nothing.
        match = tirx.Select(candidate <= highest(dtype), match, where)
    last = math.prod(a.extent for a in reduced) - 1
    # Whatever is in memory, the index lies within the row.
    clamped = tirx.Min(tirx.BufferLoad(first, index_indices), int32(last))
    own = tuple(Axis(Var(a.var.name, "int32"), a.extent) for a in spatial)
    fresh = {a.var: b.var for a, b in zip(spatial, own, strict=True)}
    return [
        Stage(
            f"{name}_value",
            spatial,
            reduced,
            value_buffer,
            tuple(value_indices),
            candidate,
            extremum,
        ),
        Stage(
            f"{name}_first",
            spatial,
            reduced,
            first,
            tuple(index_indices),
            match,
            Reduction("min", none),
        ),
        Stage(
            name,
            own,
            (),
            index_buffer,
            tuple(substitute(i, fresh) for i in index_indices),
            tirx.Cast(buffer_dtype(index_buffer), substitute(clamped, fresh)),
        ),
    ]


def identity_axes(stage: Stage) -> list[Axis | None] | None:
    """For each dimension of the stage's buffer the axis that indexes it (None for index 0).

    None if an index is anything but a loop variable of its own.
    """
    by_var = {a.var: a for a in stage.axes}
    result: list[Axis | None] = []
    for i, extent in zip(stage.indices, buffer_shape(stage.buffer), strict=True):
        if isinstance(i, Var) and i in by_var and by_var[i].extent == extent:
            result.append(by_var.pop(i))
        elif isinstance(i, tirx.IntImm) and int(i) == 0 and extent == 1:
            result.append(None)
        else:
            return None
    return result if not by_var else None
