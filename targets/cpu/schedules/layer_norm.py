"""Layer, RMS, instance and group normalisation, with what is fused before and after."""

from __future__ import annotations

from tinsmith.targets.cpu.expressions import call_name, children
from tinsmith.targets.cpu.schedules.rows import RowTemplate, RowWorkload


class Normalization(RowTemplate):
    """Sums over a row and a reciprocal square root applied to each of its elements."""

    name = "normalization"

    def accepts(self, workload: RowWorkload) -> bool:
        """Whether all reductions are sums and a (reciprocal) square root of one is taken."""
        stages = workload.rows.program.stages
        combiners = {s.reduction.combiner for s in stages if s.reduction is not None}
        return combiners == {"add"} and any(_has_root(s.value) for s in stages)


def _has_root(expr: object) -> bool:
    return call_name(expr) in ("rsqrt", "sqrt") or any(_has_root(c) for c in children(expr))
