"""Softmax and log-softmax over any axis; scale and mask before it may be fused in."""

from __future__ import annotations

from tinsmith.targets.cpu.expressions import call_name, children
from tinsmith.targets.cpu.schedules.rows import RowTemplate, RowWorkload


class Softmax(RowTemplate):
    """A maximum, then a sum of exponentials, over the same rows."""

    name = "softmax"

    def accepts(self, workload: RowWorkload) -> bool:
        """Whether a `max` reduction is followed by exponentials and an `add` reduction."""
        stages = workload.rows.program.stages
        combiners = [s.reduction.combiner for s in stages if s.reduction is not None]
        return combiners == ["max", "add"] and any(_has_exp(s.value) for s in stages)


def _has_exp(expr: object) -> bool:
    return call_name(expr) == "exp" or any(_has_exp(c) for c in children(expr))
