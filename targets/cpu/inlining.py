"""Substitutes elementwise stages into the stages that read them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.tirx import Var

from tinsmith.targets.cpu.expressions import CONDITIONAL, cost, loads, replace_loads, substitute
from tinsmith.targets.cpu.program import Axis, Program, Stage, identity_axes

# Up to this much arithmetic, recomputing a value is cheaper than storing and reloading it.
_CHEAP = 8


def inline(program: Program) -> Program:
    """Substitutes elementwise stages into their consumers where that costs no more than storing.

    Values used several times at one point are bound by a `Let`, once.
    """
    stages = list(program.stages)
    position = 0
    while position < len(stages):
        stage = stages[position]
        dims = identity_axes(stage)
        if stage.reduction is not None or program.is_output(stage.buffer) or dims is None:
            position += 1
            continue
        consumers = [
            s
            for s in stages
            if any(r.source.same_as(stage.buffer) for r in loads([s.value, *s.indices]))
        ]
        if any(_reads_in_indices(s, stage.buffer) for s in consumers) or not _worth_inlining(
            stage, consumers
        ):
            position += 1
            continue
        for consumer in consumers:
            where = next(i for i, s in enumerate(stages) if s is consumer)
            stages[where] = _inline_into(stage, dims, consumer)
        stages.pop(position)
    return Program(program.function, tuple(stages))


def _reads_in_indices(stage: Stage, buffer: Var) -> bool:
    indices = list(stage.indices)
    for read in loads(stage.value):
        indices.extend(read.indices)
    return any(r.source.same_as(buffer) for r in loads(indices))


def _uses(consumer: Stage, buffer: Var) -> list[list[TensorLoad]]:
    """The reads of `buffer`, grouped by equal indices."""
    groups: list[list[TensorLoad]] = []
    for read in loads(consumer.value):
        if read.source.same_as(buffer):
            for group in groups:
                if tvm_ffi.structural_equal(group[0], read):
                    group.append(read)
                    break
            else:
                groups.append([read])
    return groups


def _worth_inlining(stage: Stage, consumers: list[Stage]) -> bool:
    work = cost(stage.value)
    evaluations = sum(
        min(c.points, stage.points) if _reads_each_once(c, group[0]) else c.points
        for c in consumers
        for group in _uses(c, stage.buffer)
    )
    if evaluations <= stage.points or work == 0:
        return True
    largest = max((c.points for c in consumers), default=0)
    if largest > stage.points:
        return work <= 2
    return work <= _CHEAP and len(loads(stage.value)) <= 4


def _reads_each_once(consumer: Stage, read: TensorLoad) -> bool:
    """Whether every element is read at one point at most: a copy or transpose, padded maybe."""
    axes = [a.var for a in consumer.axes]
    plain = [i for i in read.indices if not isinstance(i, tirx.IntImm)]
    moving = [a for a in consumer.axes if not any(a.var.same_as(i) for i in plain)]
    if len(set(plain)) != len(plain) or any(i not in axes for i in plain):
        return False
    return not moving and not consumer.reduce_axes


def _inline_into(stage: Stage, dims: list[Axis | None], consumer: Stage) -> Stage:
    value = consumer.value
    bindings: list[tuple[Var, Expr]] = []

    def at(read: TensorLoad) -> Expr:
        mapping = {a.var: i for a, i in zip(dims, read.indices, strict=True) if a is not None}
        return substitute(stage.value, mapping)

    for group in _uses(consumer, stage.buffer):
        if len(group) > 1 and cost(stage.value) > 2 and not _guarded(value, stage.buffer):
            bound = Var(stage.name, stage.value.ty)
            bindings.append((bound, at(group[0])))
            first = group[0]
            value = replace_loads(value, partial(_replaced, first, bound))
    value = replace_loads(value, lambda r: at(r) if r.source.same_as(stage.buffer) else None)
    for bound, bound_value in reversed(bindings):
        value = tirx.Let(bound, bound_value, value)
    return replace(consumer, value=value)


def _replaced(original: TensorLoad, bound: Var, read: TensorLoad) -> Expr | None:
    return bound if tvm_ffi.structural_equal(read, original) else None


def _guarded(value: Expr, buffer: Var) -> bool:
    """Whether a read of `buffer` happens only under a condition (it may be out of bounds)."""
    found = False

    def call(node: tvm.ir.Call) -> None:
        nonlocal found
        if node.op.name == CONDITIONAL and any(
            r.source.same_as(buffer) for r in loads(list(node.args[1:]))
        ):
            found = True

    tvm_ffi.structural_walk(value, (tvm.ir.Call, call))
    return found
