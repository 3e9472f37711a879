"""Records of kernels while others are still searched: a job that is killed leaves more than trials.

The fastest candidates are timed in the model now and then. One that wins there gets a record that
says that its search is not over: compilations use it, and the next job searches on from it. At the
end of the job, when whole models have been compared, other records take their place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.closing import Confirmation
from tinsmith.compiler.tuning.records import Record, Subject, decisions_key
from tinsmith.compiler.tuning.store import Shelf
from tinsmith.compiler.tuning.tasks import Task

# The share of a search that may be spent on them.
_SHARE = 0.15
_EXTENT = Confirmation(candidates=1, seconds=1.0)


class EarlyRecords:
    """Confirms and writes what a search has found so far.

    `tasks` are the kernels of the model in which candidates are confirmed, by `confirm`, which
    sets the winners of the states that it is given; other kernels of a search wait. `record`
    makes the record of a state with a winner.
    """

    def __init__(
        self,
        tasks: Mapping[Subject, Task],
        confirm: Callable[[Sequence[TaskState], Confirmation], object],
        record: Callable[[TaskState], Record],
        shelf: Shelf,
        seconds: float,
    ) -> None:
        """`seconds` is how long a confirmation takes, about."""
        self._tasks, self._confirm, self._record, self._shelf = tasks, confirm, record, shelf
        self._seconds = seconds
        self._next = 0.0
        # The candidates that were confirmed or did not win, by kernel.
        self._tried: dict[Subject, object] = {}
        self.written: set[Subject] = set()

    def after_batch(self, states: Sequence[TaskState], deadline: float) -> None:
        """Confirm what is new and fast, if it is time to; `deadline` is that of the search."""
        begin = time.monotonic()
        if begin < self._next or begin + self._seconds > deadline:
            return
        # Copies: the end of the job judges anew.
        found = [
            replace(state, task=self._tasks[state.task.subject], winner=None, ratio=None)
            for state in states
            if state.task.subject in self._tasks and not state.abandoned and self._is_new(state)
        ]
        if not found:
            return
        for state in found:
            self._tried[state.task.subject] = decisions_key(state.search.best[0])
        try:
            self._confirm(found, _EXTENT)
        except BuildError:  # the end of the job, which tries again, tells of it
            self._next = math.inf
            return
        winners = [state for state in found if state.winner is not None]
        self._shelf.add_records(self._record(state) for state in winners)
        self.written |= {state.task.subject for state in winners}
        now = time.monotonic()
        self._seconds = now - begin
        self._next = now + self._seconds * (1 / _SHARE - 1)

    def _is_new(self, state: TaskState) -> bool:
        decisions, ratio = state.search.best
        known = 1.0 if state.record is None else state.record.ratio
        return ratio < known and self._tried.get(state.task.subject) != decisions_key(decisions)
