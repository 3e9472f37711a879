"""Templates without decisions: for functions that have their loops already, or that get none."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tvm.tirx import PrimFunc

from tinsmith.targets.buffers import static_bytes
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import (
    TEMPLATE_ATTRIBUTE,
    WORKLOAD_ATTRIBUTE,
    Decisions,
    Match,
    Template,
)


class Undecided(Template):
    """Nothing to decide; without an `apply` of its own, nothing to change."""

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        return {}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        return {}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        return function


class Finished(Undecided):
    """Functions that name this template by `TEMPLATE_ATTRIBUTE`: finished by their definition."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """The workload, which has `flops`, from the function's `WORKLOAD_ATTRIBUTE`, or None."""

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """The workload that the definition wrote down."""
        attributes = function.attrs
        if not attributes or attributes.get(TEMPLATE_ATTRIBUTE) != self.name:
            return None
        workload = self.read(str(attributes.get(WORKLOAD_ATTRIBUTE, "")))
        return None if workload is None else Match(workload, workload.flops, static_bytes(function))


class Unscheduled(Undecided):
    """Everything else, last of a backend: loops with state, library calls, dynamic shapes."""

    name = "unscheduled"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """Every function; its arithmetic is not known."""
        return Match(None, 0, static_bytes(function))
