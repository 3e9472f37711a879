"""Records of what a job has found, with where they come from."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.records import SEARCH, UNFINISHED, Record, Subject


@dataclass(frozen=True)
class RecordMaker:
    """Makes the records of the kernels of one model, measured on one processor."""

    model: str
    processor: str

    @property
    def provenance(self) -> dict[str, str]:
        """Where the records come from."""
        return {
            "model": self.model,
            "processor": self.processor,
            "date": datetime.date.today().isoformat(),
            "tinsmith": tinsmith_version(),
        }

    def record(self, state: TaskState) -> Record:
        """The winner of a search, or the default where it has none."""
        one_call = state.task.seconds / max(state.task.calls, 1)
        decisions, seconds, default = state.winner or (state.task.default, one_call, one_call)
        provenance = {"kernel": state.task.name, **self.provenance}
        trials = state.known + state.trials
        return Record(state.task.subject, decisions, seconds, default, trials, provenance)

    def early(self, state: TaskState) -> Record:
        """The same while the search goes on."""
        record = self.record(state)
        return replace(record, provenance={**record.provenance, SEARCH: UNFINISHED})

    def final(self, closed: Iterable[TaskState], early: Collection[Subject]) -> list[Record]:
        """Records of kernels whose search is over and has no winner that is kept.

        Those without a record get one of their default. What this job wrote `early`, or one
        that was killed, gives way to the record that there was, or is final now.
        """
        found = []
        for state in closed:
            if state.record is None:
                found.append(self.record(state))
            elif state.record.is_early or state.task.subject in early:
                known = state.record.provenance
                told = {key: value for key, value in known.items() if key != SEARCH}
                found.append(replace(state.record, provenance=told))
        return found
