"""What the templates for row programs share: the workload, the decisions, the emission."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.domain import Box
from tinsmith.targets.cpu.elementwise_loops import emit_box
from tinsmith.targets.cpu.inlining import inline
from tinsmith.targets.cpu.program import Program, parse
from tinsmith.targets.cpu.row_loops import RowSchedule, emit_rows
from tinsmith.targets.cpu.row_program import RowProgram, analyse
from tinsmith.targets.cpu.schedules.stagewise import (
    add_intermediates,
    finish,
    flat_views,
    stage_assignment,
)
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


@dataclass(frozen=True)
class RowWorkload:
    """A program and its row structure."""

    program: Program
    rows: RowProgram


class RowTemplate(Template):
    """A template for functions that are row programs and of a certain family."""

    @abstractmethod
    def accepts(self, workload: RowWorkload) -> bool:
        """Whether the function is of this template's family."""

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """The row structure of `function`, if it has one and the family is right."""
        program = parse(function)
        if program is None or all(s.reduction is None for s in program.stages):
            return None
        program = inline(program)
        rows = analyse(program)
        if rows is None:
            return None
        workload = RowWorkload(program, rows)
        if not self.accepts(workload):
            return None
        return Match(workload, program.flops, program.bytes)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """Four vectors per step: as many additions are in flight as they take cycles."""
        return {"unroll": 4}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """The number of vectors per step."""
        return {"unroll": (1, 2, 4, 8)}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """All stages, one row (or one vector of rows) at a time."""
        rows: RowProgram = match.workload.rows
        flat, statements = flat_views(rows.program)
        before = Program(rows.program.function, rows.prologue)
        statements.extend(add_intermediates(before, flat))
        for stage in rows.prologue:
            statements.extend(emit_box(Box(stage.axes, (stage_assignment(stage, flat),)), spec))
        statements.extend(emit_rows(rows, flat, spec, RowSchedule(decisions["unroll"])))
        return finish(rows.program, statements)
