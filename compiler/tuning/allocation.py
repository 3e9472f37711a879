"""Which task gets the next batch: the one that is expected to save most, for what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.compiler.tuning.records import Record, Trial, decisions_key
from tinsmith.compiler.tuning.report import TaskRow
from tinsmith.compiler.tuning.search import Search
from tinsmith.compiler.tuning.tasks import Task
from tinsmith.targets.template import Decisions

BATCH = 24
FIRST_BATCH = 4
# A batch that gains less has gained nothing; after so many of them the search ends.
_GAIN = 0.005
_PATIENCE = 2
# What the first batch of a task is expected to gain; half of that after each that gains nothing.
_HOPE = 0.1
# A further batch must be expected to save that share of a run of the model.
_WORTHWHILE = 2e-4


@dataclass
class TaskState:
    """A task with its search. `trials` counts those of this job, `known` those before it.

    `record` is what the kernel runs with now, None for the template's default.
    `batch_seconds` is how long the last batch took, to build above all; 0 before the first.
    """

    index: int
    task: Task
    search: Search
    known: int = 0
    record: Record | None = None
    trials: int = 0
    failures: int = 0
    idle: int = 0
    last_gain: float = 0.0
    batch_seconds: float = 0.0
    abandoned: str = ""
    ratio: float | None = None
    winner: tuple[Decisions, float, float] | None = None

    def add(self, trials: list[Trial]) -> None:
        """Take over what was measured."""
        before = self.search.best[1]
        for trial in trials:
            self.search.tried[decisions_key(trial.decisions)] = trial.ratio
        self.trials += len(trials)
        self.failures += sum(bool(trial.failure) for trial in trials)
        after = self.search.best[1]
        self.last_gain = max(0.0, 1 - after / before)
        if self.last_gain >= _GAIN:
            self.idle = 0
        elif not 0 < len(trials) < BATCH // 2:  # so few are no reason to give up
            self.idle += 1

    def is_done(self, most_trials: int) -> bool:
        """Whether too little is expected of more trials, or no more are allowed."""
        return bool(
            self.abandoned
            or not self.search.left
            or self.known + self.trials >= most_trials
            or self.idle >= _PATIENCE
            or (self.is_served and self._expected * self.task.share < _WORTHWHILE)
        )

    @property
    def is_served(self) -> bool:
        """Whether anything was tried, in this job or before."""
        return self.known + self.trials > 0

    @property
    def expected_gain(self) -> float:
        """Seconds of a run of the model that the next batch is expected to save."""
        return self.task.seconds * self._expected

    @property
    def _expected(self) -> float:
        """What the next batch is expected to save, as a share of the default's time."""
        return self.search.best[1] * max(self.last_gain, _HOPE * 0.5**self.idle)

    def row(self, most_trials: int) -> TaskRow:
        """What is shown of the task."""
        best = min(1.0, self.search.best[1] if self.ratio is None else self.ratio)
        state = "done" if self.is_done(most_trials) else "searching" if self.trials else "waiting"
        return TaskRow(
            kernel=self.task.name,
            template=self.task.subject.template,
            calls=self.task.calls,
            share=self.task.share,
            microseconds=self.task.seconds / max(self.task.calls, 1) * 1e6,
            ratio=best,
            trials=self.known + self.trials,
            failures=self.failures,
            state=self.abandoned or state,
        )


def next_task(states: Sequence[TaskState]) -> TaskState:
    """The task whose next batch is expected to save most for every second that it takes.

    A kernel that was not built yet is expected to take as long as the others on average.
    """
    known = [state.batch_seconds for state in states if state.batch_seconds]
    usual = sum(known) / len(known) if known else 1.0
    return max(states, key=lambda state: state.expected_gain / (state.batch_seconds or usual))
