"""Walks through trees of decisions, which come from the front end as finished loops."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tinsmith.targets.buffers import static_bytes
from tinsmith.targets.cpu.schedules.recurrent import TEMPLATE_ATTRIBUTE, WORKLOAD_ATTRIBUTE
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


@dataclass(frozen=True)
class ForestWorkload:
    """Each of `rows` goes through `trees`, by way of about `levels` branches."""

    rows: int
    trees: int
    levels: int

    @property
    def flops(self) -> int:
        """Comparisons."""
        return self.rows * self.trees * self.levels


class ForestTemplate(Template):
    """Functions marked as forests by their definition, which knows what each step needs."""

    name = "forest"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """The workload that the definition wrote down."""
        attributes = function.attrs
        if not attributes or attributes.get(TEMPLATE_ATTRIBUTE) != self.name:
            return None
        sizes = str(attributes.get(WORKLOAD_ATTRIBUTE, ""))
        found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", sizes)}
        if set(found) != {"rows", "trees", "levels"}:
            return None
        workload = ForestWorkload(**found)
        return Match(workload, workload.flops, static_bytes(function))

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """Nothing to decide."""
        return {}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """Nothing to decide."""
        return {}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The function as its definition wrote it."""
        return function
