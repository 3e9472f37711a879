"""Sums, means, extrema, their indices, over any axes, with what is fused before and after."""

from __future__ import annotations

from targets.cpu.schedules.rows import RowTemplate, RowWorkload


class RowReduction(RowTemplate):
    """Any program of reductions over shared rows that no more specific template knows.

    Covers sum, mean, max, min, prod, argmax, argmin, variance, norms and global
    pooling; reduced axes may be innermost (lanes share a row) or not.
    """

    name = "reduction"

    def accepts(self, workload: RowWorkload) -> bool:
        """Every row program qualifies."""
        return True
