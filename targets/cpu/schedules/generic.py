"""The last resort: any program of stages, one after the other.

`Generic` vectorises and parallelises each stage on its own but tiles nothing and
keeps intermediate results in memory; a kernel reported under this name deserves
a template. Where there is much to compute, a search may take a sample of MetaSchedule's
space instead (see `samples`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu.domain import Box
from tinsmith.targets.cpu.elementwise_loops import emit_box
from tinsmith.targets.cpu.inlining import inline
from tinsmith.targets.cpu.program import Program, parse
from tinsmith.targets.cpu.row_loops import RowSchedule, emit_rows
from tinsmith.targets.cpu.row_program import RowProgram, analyse
from tinsmith.targets.cpu.schedules.samples import (
    is_plain,
    is_sample,
    own_loops,
    sample_numbers,
    sampled,
)
from tinsmith.targets.cpu.schedules.stagewise import (
    add_intermediates,
    finish,
    flat_views,
    stage_assignment,
)
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


@dataclass(frozen=True)
class GenericWorkload:
    """The program, and for each of its stages the row structure if it is a reduction."""

    program: Program
    rows: tuple[RowProgram | None, ...]


class Generic(Template):
    """Any function that consists of stages with static shapes."""

    name = "generic"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """Every function that can be parsed into stages."""
        program = parse(function)
        if program is None:
            return None
        program = inline(program)
        rows: list[RowProgram | None] = []
        for stage in program.stages:
            alone = Program(program.function, (stage,))
            found = None if stage.reduction is None else analyse(alone)
            if stage.reduction is not None and found is None:
                return None
            rows.append(found)
        return Match(GenericWorkload(program, tuple(rows)), program.flops, program.bytes)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """Four vectors per step of a reduction."""
        return {"unroll": 4, **own_loops(match)}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """The number of vectors per step of a reduction, or a sample."""
        return {"unroll": (1, 2, 4, 8), **sample_numbers(match)}

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        """A sample has no vectors per step to choose."""
        return is_plain(decisions, self.default(match, spec))

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The sample, or one nest per stage."""
        if is_sample(decisions):
            return sampled(function, decisions, spec)
        program = match.workload.program
        flat, statements = flat_views(program)
        statements.extend(add_intermediates(program, flat))
        for stage, rows in zip(program.stages, match.workload.rows, strict=True):
            emitted: list[Stmt]
            if rows is None:
                emitted = emit_box(Box(stage.axes, (stage_assignment(stage, flat),)), spec)
            else:
                emitted = emit_rows(rows, flat, spec, RowSchedule(decisions["unroll"]))
            statements.extend(emitted)
        return finish(program, statements)
