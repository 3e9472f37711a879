"""New records are kept only as far as they make the whole model faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.preparation import Prepared
from tinsmith.compiler.tuning import acceptance
from tinsmith.compiler.tuning.acceptance import Verdict, accept
from tinsmith.compiler.tuning.closing import confirmation, seconds_to_reserve
from tinsmith.compiler.tuning.lookup import ChosenRecords
from tinsmith.compiler.tuning.records import Record, Subject
from tinsmith.compiler.tuning.runner import Runner, starts

RECORDS = tuple(
    Record(Subject("convolution", 1, f"{i:016x}"), {"rows": i}, 1e-3, 2e-3) for i in range(1, 6)
)


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """What is kept of five records, given the milliseconds and the correctness of so many."""

    def decide(
        milliseconds: dict[int, float],
        right: tuple[int, ...] = (0, 1, 2, 5),
        deadline: float = math.inf,
        **options: bool,
    ) -> Verdict:
        def build(prepared: Any, records: ChosenRecords, folder: Path) -> Path:
            return Path(str(len(records._records)))

        def race(before: Path, after: Path, seconds: float) -> tuple[float, float]:
            if int(str(after)) not in milliseconds:
                raise BuildError("new died while it was timed")
            return 1.0, milliseconds[int(str(after))]

        monkeypatch.setattr(acceptance, "build", build)
        runner = SimpleNamespace(
            agrees=lambda path: int(str(path)) in right,
            race=race,
        )
        return accept(
            cast(Prepared, None),
            Path("before"),
            RECORDS,
            None,
            cast(Runner, runner),
            deadline,
            **options,
        )

    return decide


def test_what_is_faster_is_kept(verdict: Callable[..., Verdict]) -> None:
    found = verdict({5: 0.9})
    assert found.kept == RECORDS
    assert (found.before_ms, found.after_ms, found.notes) == (1.0, 0.9, ())


def test_the_less_valuable_half_is_dropped_first(verdict: Callable[..., Verdict]) -> None:
    found = verdict({5: 1.1, 2: 0.95})
    assert found.kept == RECORDS[:2]
    assert "5 new records together do not help: 1.100 ms instead of 1.000 ms" in found.notes[0]


def test_what_never_helps_is_not_kept(verdict: Callable[..., Verdict]) -> None:
    found = verdict({5: 1.0, 2: 1.2, 1: 1.01})
    assert found.kept == ()
    assert len(found.notes) == 3


def test_wrong_results_are_not_kept(verdict: Callable[..., Verdict]) -> None:
    found = verdict({5: 0.5, 2: 0.9}, right=(2,))
    assert found.kept == RECORDS[:2]
    assert "differ from the reference" in found.notes[0]


def test_new_algorithms_may_help_without_records(verdict: Callable[..., Verdict]) -> None:
    slower = {5: 1.0, 2: 1.2, 1: 1.01}
    found = verdict(slower | {0: 0.8}, even_none=True)
    assert (found.kept, found.after_ms) == ((), 0.8)
    assert verdict(slower | {0: 1.1}, even_none=True).after_ms == 0
    assert verdict(slower | {0: 0.8}).after_ms == 0


def test_a_model_that_dies_in_the_race_does_not_end_the_job(
    verdict: Callable[..., Verdict],
) -> None:
    found = verdict({2: 0.9})
    assert found.kept == RECORDS[:2]
    assert "died while it was timed" in found.notes[0]


def test_parts_are_left_to_the_next_job_when_time_is_up(verdict: Callable[..., Verdict]) -> None:
    found = verdict({5: 1.1, 2: 0.95}, deadline=0.0)
    assert (found.kept, found.is_complete) == ((), False)
    assert "time is up" in found.notes[-1]
    assert verdict({5: 0.9}, deadline=0.0).kept == RECORDS


@pytest.mark.parametrize(
    ("minutes", "build_seconds", "least", "most"),
    [
        (0.5, 0.5, 7, 8),
        (1.3, 1.0, 15, 20),
        (10.0, 1.0, 20, 30),
        (10.0, 10.0, 55, 65),
        (0.2, 60, 6, 6),
    ],
)
def test_the_end_of_a_job_is_scaled_with_it(
    minutes: float, build_seconds: float, least: float, most: float
) -> None:
    reserve = seconds_to_reserve(60 * minutes, build_seconds)
    assert least <= reserve <= most
    extent = confirmation(reserve, build_seconds)
    assert 1 <= extent.candidates <= 3
    assert 1.0 <= extent.seconds <= 4.0
    if extent.candidates > 1:
        assert (extent.candidates + 1) * build_seconds + extent.seconds < reserve


def test_races_start_as_often_as_there_is_time() -> None:
    assert len(list(starts(60.0))) == 3
    assert len(list(starts(-1.0))) == 1
