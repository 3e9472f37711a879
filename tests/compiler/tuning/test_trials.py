"""The loop of a search, with made-up measurements."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.tuning import learner as learner_module
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.batch import Outcome
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.learning import Lessons
from tinsmith.compiler.tuning.measure import Ledger, Measured
from tinsmith.compiler.tuning.records import Subject
from tinsmith.compiler.tuning.search import Search
from tinsmith.compiler.tuning.store import Store
from tinsmith.compiler.tuning.tasks import Task
from tinsmith.compiler.tuning.trials import TrialLoop
from tinsmith.targets.registry import get_target
from tinsmith.targets.template import Decisions

SPACE = tuple({"rows": rows, "unroll": unroll} for rows in range(1, 41) for unroll in (1, 2))


class MadeUp:
    """More rows are faster."""

    lanes = 1

    def __init__(self) -> None:
        self.ledger = Ledger()

    def measure(self, kernel: int, candidates: Sequence[Decisions], seconds: float) -> Measured:
        if kernel == 1:
            raise BuildError("its default decisions fail: no reason")
        outcomes = tuple(Outcome(1.0 / candidate["rows"]) for candidate in candidates)
        return Measured(outcomes, (1.0,) * len(outcomes))

    def __enter__(self) -> MadeUp:
        return self

    def __exit__(self, *_: object) -> None:
        return


def state(index: int) -> TaskState:
    subject = Subject("convolution", 1, f"{index:016x}")
    kernel: Any = None  # Nothing is run.
    numbers = {"pixels": 49}
    task = Task(f"kernel{index}", subject, kernel, SPACE[0], SPACE, numbers, 1, 0.001, 0.5)
    return TaskState(index, task, Search(SPACE, numbers))


def loop(states: list[TaskState], learner: Learner, log: Path) -> TrialLoop:
    shelf = Store(log).shelf_to_write(get_target("native"))
    return TrialLoop(states, 72, Lessons(states, learner, 0), True, shelf, lambda: None)


def test_a_search_goes_on_when_its_model_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("MISBEHAVE", "segfault")
    monkeypatch.setattr(learner_module, "MODULE", "misbehaving_model")
    searched = state(0)
    with Learner() as learner:
        search = loop([searched], learner, tmp_path)
        assert search.run(MadeUp(), time.monotonic() + 600) == []
        assert searched.trials > 24
        assert "because the cost model died of SIGSEGV" in learner.note
    (tried,) = search.shelf.trials().values()
    assert len(tried) == searched.trials


def test_a_kernel_that_cannot_be_measured_is_given_up(tmp_path: Path) -> None:
    states = [state(0), state(1)]
    with Learner() as learner:
        notes = loop(states, learner, tmp_path).run(MadeUp(), time.monotonic() + 600)
        assert not learner.note
    assert notes == ["kernel kernel1 is left alone: its default decisions fail: no reason"]
    assert states[0].search.best[0]["rows"] > 30
    assert states[1].abandoned


def test_no_batch_begins_after_the_deadline(tmp_path: Path) -> None:
    states = [state(0)]
    with Learner() as learner:
        loop(states, learner, tmp_path).run(MadeUp(), time.monotonic())
    assert states[0].trials == 0
