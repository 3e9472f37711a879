"""Records that are written while the search goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.compiler.tuning.test_trials import SPACE, MadeUp, loop, state
from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.closing import Confirmation
from tinsmith.compiler.tuning.early_records import EarlyRecords
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.record_maker import RecordMaker
from tinsmith.compiler.tuning.records import SEARCH, Record, Trial
from tinsmith.compiler.tuning.store import Shelf, Store
from tinsmith.targets.registry import get_target

MAKER = RecordMaker("model", "processor")


def a_shelf(log: Path) -> Shelf:
    return Store(log).shelf_to_write(get_target("native"))


def wins(states: Sequence[TaskState], _: Confirmation) -> None:
    for found in states:
        decisions, ratio = found.search.best
        found.winner = (decisions, ratio * 1e-3, 1e-3)


def early(states: Sequence[TaskState], shelf: Shelf, confirm=wins, seconds: float = 0.0):
    tasks = {s.task.subject: s.task for s in states}
    return EarlyRecords(tasks, confirm, MAKER.early, shelf, seconds)


def tried(searched: TaskState, rows: int) -> TaskState:
    searched.add([Trial(searched.task.subject, {"rows": rows, "unroll": 1}, 1.0 / rows, 1.0)])
    return searched


def test_the_first_batch_is_small_and_leaves_a_record(tmp_path: Path) -> None:
    searched, batches = state(0), []

    class Watched(MadeUp):
        def measure(self, kernel, candidates, seconds):
            batches.append((len(candidates), len(shelf.records())))
            return super().measure(kernel, candidates, seconds)

    with Learner() as learner:
        search = loop([searched], learner, tmp_path)
        shelf = search.shelf
        written = early([searched], shelf)
        replace(search, early=written).run(Watched(), time.monotonic() + 600)
    # Before the second batch there is a record.
    assert batches[0] == (4, 0) and batches[1] == (24, 1)
    (record,) = shelf.records().values()
    assert record.is_early and record.ratio < 1 and written.written == {searched.task.subject}
    # The end of the job judges anew.
    assert searched.winner is None


def test_what_does_not_win_is_not_tried_again(tmp_path: Path) -> None:
    asked: list[int] = []
    searched = tried(state(0), 4)
    written = early([searched], a_shelf(tmp_path), lambda states, _: asked.append(len(states)))
    for _ in range(3):
        written._next = 0.0
        written.after_batch([searched], math.inf)
    assert asked == [1] and not written.written
    tried(searched, 9)
    written._next = 0.0
    written.after_batch([searched], math.inf)
    assert asked == [1, 1]


def test_little_time_is_spent_on_it(tmp_path: Path) -> None:
    begins: list[float] = []

    def slow(states: Sequence[TaskState], _: Confirmation) -> None:
        begins.append(time.monotonic())
        time.sleep(0.05)

    searched = state(0)
    written = early([searched], a_shelf(tmp_path), slow)
    for rows in range(2, 12):
        written.after_batch([tried(searched, rows)], math.inf)
    assert len(begins) == 1
    # Nor after the deadline of the search.
    late = early([searched], a_shelf(tmp_path), slow, seconds=5.0)
    late.after_batch([searched], time.monotonic() + 1)
    assert len(begins) == 1


def test_a_model_that_cannot_be_built_does_not_end_the_search(tmp_path: Path) -> None:
    def fails(states: Sequence[TaskState], _: Confirmation) -> None:
        raise BuildError("no linker")

    searched = tried(state(0), 4)
    early([searched], a_shelf(tmp_path), fails).after_batch([searched], math.inf)


def test_records_at_the_end_take_the_place_of_early_ones() -> None:
    new, searched_on, overwritten, known = (state(index) for index in range(4))
    old = Record(searched_on.task.subject, SPACE[3], 1.0, 2.0, 5, {"kernel": "k"})
    searched_on.record = replace(old, provenance={**old.provenance, SEARCH: "unfinished"})
    overwritten.record = replace(old, subject=overwritten.task.subject)
    known.record = replace(old, subject=known.task.subject)
    found = MAKER.final(
        [new, searched_on, overwritten, known], {new.task.subject, overwritten.task.subject}
    )
    assert [record.subject for record in found] == [
        s.task.subject for s in (new, searched_on, overwritten)
    ]
    assert found[0].decisions == new.task.default
    assert found[1] == old and found[2] == overwritten.record
    assert not any(record.is_early for record in found)
