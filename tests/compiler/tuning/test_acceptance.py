"""New records are kept only as far as they make the whole model faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from compiler.preparation import Prepared
from compiler.tuning import acceptance
from compiler.tuning.acceptance import Verdict, accept
from compiler.tuning.lookup import ChosenRecords
from compiler.tuning.records import Record, Subject
from compiler.tuning.runner import Runner

RECORDS = tuple(
    Record(Subject("convolution", 1, f"{i:016x}"), {"rows": i}, 1e-3, 2e-3) for i in range(1, 6)
)


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """What is kept of five records, given the milliseconds and the correctness of so many."""

    def decide(
        milliseconds: dict[int, float], right: tuple[int, ...] = (0, 1, 2, 5), **options: bool
    ) -> Verdict:
        def build(prepared: Any, records: ChosenRecords, folder: Path) -> Path:
            return Path(str(len(records._records)))

        monkeypatch.setattr(acceptance, "build", build)
        runner = SimpleNamespace(
            agrees=lambda path: int(str(path)) in right,
            race=lambda before, after: (1.0, milliseconds[int(str(after))]),
        )
        return accept(
            cast(Prepared, None), Path("before"), RECORDS, None, cast(Runner, runner), **options
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
