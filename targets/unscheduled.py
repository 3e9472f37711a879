"""The template that a backend has last: it takes every function as it is, and says so."""

from __future__ import annotations

from tvm.tirx import PrimFunc

from tinsmith.targets.buffers import static_bytes
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


class Unscheduled(Template):
    """Everything else: loops with state, library calls, dynamic shapes."""

    name = "unscheduled"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """Every function; its arithmetic is not known."""
        return Match(None, 0, static_bytes(function))

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """Nothing to decide."""
        return {}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """Nothing to decide."""
        return {}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The function as it is."""
        return function
