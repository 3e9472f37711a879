"""Sums, means, extrema, their indices, over any axes, with what is fused before and after."""

from __future__ import annotations

from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.schedules.rows import RowTemplate, RowWorkload
from tinsmith.targets.cpu.schedules.samples import (
    is_plain,
    is_sample,
    own_loops,
    sample_numbers,
    sampled,
)
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match


class RowReduction(RowTemplate):
    """Any program of reductions over shared rows that no more specific template knows.

    Covers sum, mean, max, min, prod, argmax, argmin, variance, norms and global
    pooling; reduced axes may be innermost (lanes share a row) or not. Products that read their
    operands again and again (convolutions of three axes) are not tiled here: for
    those there is also `sample`, a number of MetaSchedule's space (see `samples`).
    """

    name = "reduction"

    def accepts(self, workload: RowWorkload) -> bool:
        """Every row program qualifies."""
        return True

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """The loops of all row programs."""
        return {**super().default(match, spec), **own_loops(match)}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """The number of vectors per step, or a sample."""
        return {**super().space(match, spec), **sample_numbers(match)}

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        """A sample has no vectors per step to choose."""
        return is_plain(decisions, self.default(match, spec))

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The sample, or one row at a time."""
        if is_sample(decisions):
            return sampled(function, decisions, spec)
        return super().apply(function, match, decisions, spec)
