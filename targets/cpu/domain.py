"""Iteration domains: splitting axes, cutting domains at conditions, collapsing axes.

A `Box` is a set of assignments over a rectangular domain with flat (linear)
addresses. The functions here bring it into a form whose innermost loop is one
vector instruction after another: no division, no condition, long contiguous runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from tinsmith.targets.buffers import buffer_shape
from tinsmith.targets.cpu.expressions import (
    Linear,
    Simplifier,
    constant_value,
    int32,
    linear_form,
    loads,
    replace_loads,
    substitute,
    variables,
)
from tinsmith.targets.cpu.program import Axis

_COMPARE = {
    tirx.LT: lambda x: x < 0,
    tirx.LE: lambda x: x <= 0,
    tirx.GT: lambda x: x > 0,
    tirx.GE: lambda x: x >= 0,
    tirx.EQ: lambda x: x == 0,
    tirx.NE: lambda x: x != 0,
}
_MOST_BOXES = 96


@dataclass(frozen=True)
class Assignment:
    """`buffer[offset] = value`, with `buffer` one-dimensional."""

    buffer: Var
    offset: Expr
    value: Expr

    def map(self, function: Any) -> Assignment:
        """The assignment with both expressions rewritten."""
        return Assignment(self.buffer, function(self.offset), function(self.value))


@dataclass(frozen=True)
class Box:
    """Assignments executed for every point of `axes` (outermost first).

    `context` are the loops around the box: free variables with known ranges.
    """

    axes: tuple[Axis, ...]
    assignments: tuple[Assignment, ...]
    context: tuple[Axis, ...] = ()

    @property
    def points(self) -> int:
        """Number of points of the domain."""
        return math.prod(a.extent for a in self.axes)

    def rewritten(self, axes: Iterable[Axis], mapping: Mapping[Var, Expr]) -> Box:
        """The box over other axes, with old variables replaced."""
        return Box(
            tuple(axes),
            tuple(a.map(lambda e: substitute(e, mapping)) for a in self.assignments),
            self.context,
        )

    def simplified(self) -> Box:
        """The box with indices and conditions simplified for its domain."""
        simplifier = Simplifier((a.var, a.extent) for a in self.axes + self.context)
        return replace(
            self,
            assignments=tuple(
                Assignment(a.buffer, simplifier.index(a.offset), simplifier.value(a.value))
                for a in self.assignments
            ),
        )

    def fresh(self) -> Box:
        """The same box with new variables, so that it can be emitted beside others."""
        axes = [Axis(Var(a.var.name, "int32"), a.extent) for a in self.axes]
        mapping = {a.var: b.var for a, b in zip(self.axes, axes, strict=True)}
        return self.rewritten(axes, mapping)


def flat_offset(buffer: Var, indices: Iterable[Expr]) -> Expr:
    """The row-major address of an element, in elements."""
    offset: Expr = int32(0)
    stride = 1
    for i, extent in reversed(list(zip(indices, buffer_shape(buffer), strict=True))):
        if constant_value(i) != 0:
            term = i if stride == 1 else i * int32(stride)
            offset = term if constant_value(offset) == 0 else term + offset
        stride *= extent
    return offset


def flatten_loads(expr: Expr, flat: Mapping[Var, Var]) -> Expr:
    """`expr` with reads of multi-dimensional buffers turned into reads of their flat views."""
    return replace_loads(
        expr,
        lambda r: (
            tirx.BufferLoad(flat[r.source], [flat_offset(r.source, r.indices)])
            if r.source in flat
            else None
        ),
    )


def accesses(box: Box) -> list[Linear]:
    """Linear forms of all addresses: the stores first, then the reads (nested ones too)."""
    forms = [linear_form(a.offset) for a in box.assignments]
    for a in box.assignments:
        forms.extend(linear_form(r.indices[0]) for r in loads([a.value]))
    return forms


def opaque_variables(box: Box) -> set[Var]:
    """Variables that occur outside of linear addresses: in conditions, casts, gathers."""
    found: set[Var] = set()
    for form in accesses(box):
        found |= form.opaque_variables()
    for a in box.assignments:
        stripped = replace_loads(a.value, lambda r: tirx.const(0, r.ty.dtype))
        found |= variables(stripped)
    return found


def _divisors(expressions: list[Expr], axis: Var) -> set[int]:
    """Literals by which expressions of `axis` alone are divided."""
    found: set[int] = set()

    def visit(node: Any) -> None:
        literal = constant_value(node.b)
        if literal and literal > 1 and variables(node.a) == {axis}:
            found.add(literal)

    for kind in (tirx.FloorDiv, tirx.FloorMod):
        tvm_ffi.structural_walk(expressions, (kind, visit))
    return found


def split_extents(extent: int, divisors: set[int]) -> list[int] | None:
    """Extents of nested axes (outermost first) that make divisions by `divisors` disappear."""
    chain = sorted(d for d in divisors if d < extent)
    if not chain:
        return None
    parts: list[int] = []
    previous = 1
    for divisor in [*chain, extent]:
        if divisor % previous:
            return None
        parts.append(divisor // previous)
        previous = divisor
    return parts[::-1]


def split_axis(axis: Axis, extents: list[int]) -> tuple[list[Axis], Expr]:
    """Nested axes for one axis, and the old variable's value in terms of the new ones."""
    axes = [Axis(Var(f"{axis.var.name}_{i}", "int32"), e) for i, e in enumerate(extents)]
    value: Expr = int32(0)
    stride = 1
    for new in reversed(axes):
        if new.extent > 1:
            term = new.var if stride == 1 else new.var * int32(stride)
            value = term if constant_value(value) == 0 else term + value
        stride *= new.extent
    return [a for a in axes if a.extent > 1], value


def split_at_divisions(box: Box) -> Box:
    """Splits axes so that `i // 12` and `i % 12` become loop variables."""
    for _ in range(3):
        box = box.simplified()
        expressions = [e for a in box.assignments for e in (a.offset, a.value)]
        axes: list[Axis] = []
        mapping: dict[Var, Expr] = {}
        for axis in box.axes:
            parts = split_extents(axis.extent, _divisors(expressions, axis.var))
            if parts is None:
                axes.append(axis)
            else:
                new, mapping[axis.var] = split_axis(axis, parts)
                axes.extend(new)
        if not mapping:
            return box
        box = box.rewritten(axes, mapping)
    return box.simplified()


def _cuts(box: Box, axis: Axis) -> list[int]:
    """Where along `axis` a condition or a clamp changes, in increasing order."""
    cuts: set[int] = set()

    def difference(node: Any) -> tuple[int, int] | None:
        if str(node.a.ty.dtype) != "int32":
            return None
        form = linear_form(node.a) + linear_form(node.b).scaled(-1)
        used = {v for v, c in form.coefficients.items() if c}
        if form.rest or used != {axis.var}:
            return None
        return form.coefficients[axis.var], form.constant

    def visit(node: Any) -> None:
        found = difference(node)
        if found is None:
            return
        factor, constant = found
        holds = _COMPARE.get(type(node), _COMPARE[tirx.LE])
        root = -constant // factor
        for position in range(max(1, root - 1), min(axis.extent, root + 3)):
            before, here = (holds(factor * p + constant) for p in (position - 1, position))
            if before != here:
                cuts.add(position)

    expressions = [e for a in box.assignments for e in (a.offset, a.value)]
    kinds = (*_COMPARE, tirx.Min, tirx.Max)
    tvm_ffi.structural_walk(expressions, (kinds, visit))
    return sorted(cuts)


def cut_at_conditions(box: Box) -> list[Box]:
    """Cuts the domain so that within each part conditions on loop variables are decided.

    The innermost axes come first: a condition there would keep the loop from
    being vectorised. Axes whose cuts would make too many parts are left alone.
    """
    boxes = [box]
    for axis in reversed(box.axes):
        cuts = _cuts(box, axis)
        if not cuts or len(boxes) * (len(cuts) + 1) > _MOST_BOXES:
            continue
        parts: list[Box] = []
        for current in boxes:
            edges = [0, *cuts, axis.extent]
            for low, high in pairwise(edges):
                where = next(i for i, a in enumerate(current.axes) if a.var.same_as(axis.var))
                new = Axis(axis.var, high - low)
                shift = axis.var if low == 0 else axis.var + int32(low)
                axes = list(current.axes)
                value: Expr = shift
                if new.extent == 1:
                    axes.pop(where)
                    value = int32(low)
                else:
                    axes[where] = new
                parts.append(current.rewritten(axes, {axis.var: value}))
        boxes = [part.simplified() for part in parts]
    return boxes


def order_axes(box: Box) -> Box:
    """Sorts the axes so that the first store runs through memory in order.

    Where that store does not move (a reduction), the reads decide.
    """
    forms = accesses(box)

    def key(axis: Axis) -> tuple[int, int]:
        return -abs(forms[0].stride(axis.var)), -max(abs(f.stride(axis.var)) for f in forms)

    return replace(box, axes=tuple(sorted(box.axes, key=key)))


def collapse(box: Box) -> Box:
    """Fuses neighbouring axes that all addresses run through as if they were one."""
    axes = list(box.axes)
    forms = accesses(box)
    opaque = opaque_variables(box)
    mapping: dict[Var, Expr] = {}
    position = len(axes) - 1
    while position > 0:
        outer, inner = axes[position - 1], axes[position]
        fusible = outer.var not in opaque and inner.var not in opaque
        if fusible and all(
            f.stride(outer.var) == f.stride(inner.var) * inner.extent for f in forms
        ):
            axes[position - 1 : position + 1] = [Axis(inner.var, outer.extent * inner.extent)]
            mapping[outer.var] = int32(0)
        position -= 1
    if not mapping:
        return box
    return box.rewritten(axes, mapping).simplified()
