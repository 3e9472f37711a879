"""The loop of a search: propose a batch, measure it, log it, learn from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.tuning.allocation import BATCH, FIRST_BATCH, TaskState, next_task
from tinsmith.compiler.tuning.early_records import EarlyRecords
from tinsmith.compiler.tuning.learning import Lessons
from tinsmith.compiler.tuning.records import Trial
from tinsmith.compiler.tuning.runner import BatchMeasurer
from tinsmith.compiler.tuning.store import Shelf

# Rounds and seconds of a batch.
_ROUNDS = 30
_SECONDS = (0.1, 0.8)


@dataclass(frozen=True)
class TrialLoop:
    """Searches `states` until nothing more is expected of them, or time is up.

    Proposals are ranked by `lessons`, which grow if the search `learns`; what is measured is on
    the disk of `shelf` before the next batch begins. `show` is called before every batch, and
    `early` may write records after it.
    """

    states: Sequence[TaskState]
    most_trials: int
    lessons: Lessons
    learns: bool
    shelf: Shelf
    show: Callable[[], None]
    early: EarlyRecords | None = None

    def run(self, measurer: BatchMeasurer, deadline: float) -> list[str]:
        """Search until `time.monotonic()` is `deadline`; notes on kernels that were given up."""
        notes: list[str] = []
        while time.monotonic() < deadline:
            open_states = [s for s in self.states if not s.is_done(self.most_trials)]
            if not open_states:
                break
            self.show()
            state = next_task(open_states)
            try:
                self._batch(measurer, state)
            except BuildError as error:
                state.abandoned = "failed"
                notes.append(f"kernel {state.task.name} is left alone: {error}")
            if self.early is not None:
                self.early.after_batch(self.states, deadline)
        return notes

    def _batch(self, measurer: BatchMeasurer, state: TaskState) -> None:
        subject = state.task.subject
        # Small at first: a job that is killed soon leaves something, and shows that it works.
        size = BATCH if any(other.trials for other in self.states) else FIRST_BATCH
        count = min(size * measurer.lanes, self.most_trials - state.known - state.trials)
        begin = time.monotonic()
        proposed = state.search.propose(count, self.lessons.model(subject.template))
        measured = measurer.measure(state.index, proposed, _seconds(state, len(proposed)))
        trials = [
            Trial(subject, decisions, failure=outcome.failure)
            if outcome.failure
            else Trial(subject, decisions, outcome.seconds, default)
            for decisions, outcome, default in zip(
                proposed, measured.outcomes, measured.default_seconds, strict=True
            )
            if outcome is not None
        ]
        self.shelf.add_trials(trials)
        state.add(trials)
        state.batch_seconds = time.monotonic() - begin
        if self.learns:
            self.lessons.learn(subject.template)


def _seconds(state: TaskState, count: int) -> float:
    """How long a batch of so many candidates is timed."""
    one_call = state.task.seconds / max(state.task.calls, 1)
    return float(np.clip(_ROUNDS * (count + 2) * one_call, *_SECONDS))
