"""Time loops of LSTM, GRU and RNN, which come from the front end as finished loops.

Their gates depend on the step before, so there is nothing to reorder: the
operator definition already has the register tiles, the vectors and the parallel
loop. What is left to do, the elementary functions of the gates, is done for
every kernel after its template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tinsmith.targets.buffers import static_bytes
from tinsmith.targets.cpu.byte_dots import use_byte_dots
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template

# How an operator definition names the template of a function that has loops already.
TEMPLATE_ATTRIBUTE = "tinsmith.template"
WORKLOAD_ATTRIBUTE = "tinsmith.workload"
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class RecurrentWorkload:
    """Sizes of a time loop: `steps` products of a state of `hidden` by `gates * hidden` columns."""

    kind: str
    steps: int
    batch: int
    hidden: int
    directions: int

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products."""
        columns = _GATES[self.kind] * self.hidden
        return 2 * self.steps * self.batch * self.directions * self.hidden * columns


class Recurrent(Template):
    """Functions marked as recurrent by their definition."""

    name = "recurrent"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """The workload that the definition wrote down."""
        attributes = function.attrs
        if not attributes or attributes.get(TEMPLATE_ATTRIBUTE) != self.name:
            return None
        kind, _, sizes = str(attributes.get(WORKLOAD_ATTRIBUTE, "")).partition(" ")
        found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", sizes)}
        if kind not in _GATES or set(found) != {"steps", "batch", "hidden", "directions"}:
            return None
        workload = RecurrentWorkload(kind=kind, **found)
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
        """The function as its definition wrote it, in the instructions of the machine."""
        return use_byte_dots(function, spec)
