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

from tinsmith.targets.cpu.byte_dots import use_byte_dots
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match
from tinsmith.targets.unscheduled import Finished

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


class Recurrent(Finished):
    """Functions marked as recurrent by their definition."""

    name = "recurrent"

    def read(self, text: str) -> RecurrentWorkload | None:
        kind, _, sizes = text.partition(" ")
        found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", sizes)}
        if kind not in _GATES or set(found) != {"steps", "batch", "hidden", "directions"}:
            return None
        return RecurrentWorkload(kind=kind, **found)

    def sums_products(self, match: Match) -> bool:
        return True

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The function as its definition wrote it, in the instructions of the machine."""
        return use_byte_dots(function, spec)
