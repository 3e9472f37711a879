"""Elementwise chains, broadcasts, copies, slices, pads, gathers, concatenations, transposes.

Everything cheap is inlined into the stages that are kept; each of them becomes
vectorised loops over boxes in which no condition is left (one copy per input of
a concatenation, one fill per side of a pad).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.inlining import inline
from tinsmith.targets.cpu.program import Program, parse
from tinsmith.targets.cpu.schedules.stagewise import emit_stages
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match
from tinsmith.targets.unscheduled import Undecided


@dataclass(frozen=True)
class InjectiveWorkload:
    """The stages left after inlining."""

    program: Program


class Injective(Undecided):
    """Functions without reductions."""

    name = "injective"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """Any function whose stages all compute each element on its own."""
        program = parse(function)
        if program is None or any(s.reduction is not None for s in program.stages):
            return None
        program = inline(program)
        return Match(InjectiveWorkload(program), program.flops, program.bytes)

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """Vectorised loops, one stage after the other."""
        return emit_stages(match.workload.program, spec)
