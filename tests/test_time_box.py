"""The time box of slow tests: everything has its turn, and what has none is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.time_box import in_turns

ROOT = Path(__file__).parent.parent
NAMES = ["f::a[1]", "f::a[2]", "f::a[3]", "f::b", "g::c[x]", "g::c[y]"]


def test_one_case_of_each_test_comes_first() -> None:
    assert in_turns(NAMES, 0) == ["f::a[1]", "f::b", "g::c[x]", "f::a[2]", "g::c[y]", "f::a[3]"]
    assert in_turns([], 3) == []


def test_all_come_first_on_some_day() -> None:
    days = [in_turns(NAMES, day) for day in range(18)]
    assert all(sorted(day) == sorted(NAMES) for day in days)
    assert {day[0] for day in days} == set(NAMES)


def _run(tmp_path: Path, minutes: str) -> str:
    path = tmp_path / "test_two.py"
    path.write_text("def test_one(): pass\ndef test_two(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.time_box", "-c", "/dev/null"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--minutes", minutes]
    done = subprocess.run(
        [*command, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    assert "2 passed" in _run(tmp_path, "60")
    told = _run(tmp_path, "0")
    assert "2 left out: no time left" in told and "2 skipped" in told
    assert "test_two.py::test_one\n" in told and "test_two.py::test_two\n" in told
