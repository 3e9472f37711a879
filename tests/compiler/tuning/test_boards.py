"""Jobs on boards: a tracker and servers on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tinsmith
from tests.compiler.tuning.rpc_lab import KEY, Lab
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.tuning.boards.board import Findings
from tinsmith.compiler.tuning.boards.runner import BoardRunner
from tinsmith.compiler.tuning.records import decisions_key
from tinsmith.compiler.tuning.report import JobView, TuneOptions
from tinsmith.compiler.tuning.runner import NoDeviceError
from tinsmith.compiler.tuning.store import Store
from tinsmith.compiler.tuning.tasks import Task
from tinsmith.targets.registry import get_target

SPEC = get_target("native")
# What misbehaving.py does for tiles of these widths.
SEGFAULTS, HANGS, IS_WRONG, EXITS = 101, 102, 104, 106


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A tracker; each test says how many boards it needs."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def convolution(small_tasks: tuple[Task, ...]) -> Task:
    return next(task for task in small_tasks if task.subject.template == "convolution")


def tile(rows: int, vectors: int = 1) -> dict[str, int]:
    return {"rows": rows, "vectors": vectors, "channels_outer": 0}


def trials(log: Path) -> list[tuple[object, ...]]:
    """The candidates in a log, one for each line."""
    (shelf,) = Store(log).shelves()
    entries = map(json.loads, (shelf.folder / "trials.jsonl").read_text().splitlines())
    return [(e["workload"], decisions_key(e["decisions"])) for e in entries]


@pytest.mark.slow
def test_a_job_on_two_boards(lab: Lab, small_model_file: Path, tmp_path: Path) -> None:
    lab.ensure(2)
    options = TuneOptions(minutes=30, trials=8, log=tmp_path, rpc=str(lab.tracker), key=KEY)
    report = tinsmith.tune(small_model_file, options=options)
    assert 0 < report.trials == len(trials(tmp_path)) == len(set(trials(tmp_path)))
    assert all(row.failures == 0 and row.ratio <= 1 for row in report.rows)
    assert not any("board" in note for note in report.notes)
    (shelf,) = Store(tmp_path).shelves()
    processors = {r.provenance["processor"] for r in shelf.records().values()}
    assert processors == {f"board {KEY}"}
    # Both are given back.
    lab.wait_for_free(2, seconds=10)


def test_candidates_that_misbehave_cost_themselves_only(
    lab: Lab, convolution: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.ensure(2)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("tinsmith.compiler.tuning.boards.candidates.LIMIT_SECONDS", 3.0)
    with (
        BoardRunner(lab.tracker, KEY, SPEC, 2, 600) as runner,
        runner.measurer([convolution.kernel], ["misbehaving"], tmp_path) as measurer,
    ):
        order = [tile(4), tile(2), tile(4, SEGFAULTS), tile(4, IS_WRONG), tile(4, EXITS)]
        order += [tile(4, HANGS), tile(8)]
        found = measurer.measure(0, order, 0.05)
        outcomes = [outcome for outcome in found.outcomes if outcome is not None]
        assert len(outcomes) == len(order)
        good, other, crashed, wrong, ended, hung, last = outcomes
        assert good.seconds > 0 and other.seconds > 0 and last.seconds > 0
        assert found.default_seconds[0] > 0
        assert crashed.failure == "died of SIGSEGV"
        assert "something else than the default: off by" in wrong.failure
        assert ended.failure == "ended with code 0"
        assert hung.failure == "took longer than 3 s"
        assert runner.notes == []
    lab.wait_for_free(2, seconds=10)


def test_a_model_on_a_board(lab: Lab, small_model_file: Path, tmp_path: Path) -> None:
    lab.ensure(2)
    options = {"static_library": False, "runner": False}
    tinsmith.compile_to(small_model_file, tmp_path / "right", **options)
    tinsmith.compile_to(small_model_file, tmp_path / "wrong", **options)
    golden = tmp_path / "wrong" / "golden.bin"
    content = bytearray(golden.read_bytes())
    content[-8:] = np.full(2, 1e3, np.float32).tobytes()
    golden.write_bytes(content)
    with BoardRunner(lab.tracker, KEY, SPEC, 2, 600) as runner:
        assert runner.agrees(tmp_path / "right")
        assert not runner.agrees(tmp_path / "wrong")
        paths = [tmp_path / "right", tmp_path / "wrong"]
        first, second = runner.step_seconds(paths, 0.1) or ([], [])
        manifest = tinsmith.load(tmp_path / "right").manifest
        assert [step.kernel for step in first] == list(manifest.steps)
        assert all(0 < step.seconds < 1 for step in (*first, *second))
        before, after = runner.race(*paths, 60.0)
        assert 0.2 < before / after < 5


def test_a_board_that_dies_leaves_its_candidates_to_the_other(
    lab: Lab, small_model_file: Path, tmp_path: Path
) -> None:
    lab.ensure(2)

    def kill_one(view: JobView) -> None:
        if view.phase == "searching" and lab.boards[0].is_alive:
            lab.boards[0].kill()

    options = TuneOptions(minutes=30, trials=12, log=tmp_path, rpc=str(lab.tracker), key=KEY)
    report = tinsmith.tune(small_model_file, options=options, progress=kill_one)
    lost = [note for note in report.notes if "was lost" in note]
    assert len(lost) == 1 and f":{lab.boards[0].port} " in lost[0]
    assert len(trials(tmp_path)) == len(set(trials(tmp_path))) == report.trials
    assert report.trials == sum(row.trials for row in report.rows) > 0
    assert all(row.failures == 0 for row in report.rows)
    (shelf,) = Store(tmp_path).shelves()
    assert len(shelf.records()) == len(report.rows)
    lab.wait_for_free(1, seconds=10)


@pytest.mark.slow
def test_a_job_without_a_board_left_ends(lab: Lab, small_model_file: Path, tmp_path: Path) -> None:
    lab.ensure(1)

    def kill_all(view: JobView) -> None:
        if view.phase == "searching" and any(row.trials for row in view.rows):
            lab.boards[0].kill()

    options = TuneOptions(minutes=30, trials=12, log=tmp_path, rpc=str(lab.tracker), key=KEY)
    with pytest.raises(NoDeviceError, match="no board is left"):
        tinsmith.tune(small_model_file, options=options, progress=kill_all)
    measured = trials(tmp_path)
    assert measured
    (shelf,) = Store(tmp_path).shelves()
    assert all(record.is_early for record in shelf.records().values())
    assert not shelf.finished_jobs()
    # With another board the same command goes on.
    lab.ensure(1)
    again = tinsmith.tune(small_model_file, options=options)
    everything = trials(tmp_path)
    assert everything[: len(measured)] == measured
    assert len(everything) == len(set(everything)) == len(measured) + again.trials
    assert shelf.records() and not any(r.is_early for r in shelf.records().values())


def test_a_killed_job_gives_its_boards_back(
    lab: Lab, small_model_file: Path, tmp_path: Path
) -> None:
    lab.ensure(2)
    tune = [sys.executable, "-m", "tinsmith.compiler.cli", "tune"]
    command = [*tune, str(small_model_file), "--json"]
    where = ["--rpc", str(lab.tracker), "--key", KEY, "--log", str(tmp_path)]
    job = subprocess.Popen([*command, *where], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("*/trials.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lab.free() == 0
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    lab.wait_for_free(2, seconds=20)


def test_boards_that_cannot_be_used_are_told(lab: Lab, small_model_file: Path) -> None:
    lab.ensure(2)
    options = TuneOptions(rpc=str(lab.tracker), key="unknown")
    with pytest.raises(TargetError, match=f"no such board; it has {KEY}"):
        tinsmith.tune(small_model_file, options=options)
    options = TuneOptions(rpc=str(lab.tracker), key=KEY)
    foreign = CompileConfig(target="cortex-a76")
    with pytest.raises(TargetError, match="for target cortex-a76: it cannot load code"):
        tinsmith.tune(small_model_file, config=foreign, options=options)
    lab.wait_for_free(2, seconds=10)
    with (
        BoardRunner(lab.tracker, KEY, SPEC, 2, 600),
        pytest.raises(TargetError, match=r"all 2 boards .* in use"),
    ):
        tinsmith.tune(small_model_file, options=options)
    lab.wait_for_free(2, seconds=10)
    with BoardRunner(lab.tracker, KEY, SPEC, 2, 600) as runner:
        for board in runner._fleet.boards:
            runner._fleet.drop(board, "for a test")
        with (
            runner.measurer([], [], None) as measurer,
            pytest.raises(NoDeviceError, match="no board is left: for a test"),
        ):
            measurer.measure(0, [], 0.1)
    lab.wait_for_free(2, seconds=10)


def test_what_a_board_tells_is_checked() -> None:
    text = "deviation 0 0 0.25\ntime 0 3 1 2\ntime 0 4 1 3\nend\n"
    found = Findings.parse(0, text, 1.0)
    assert found.failure == "" and found.deviations == {0: [0.25]}
    np.testing.assert_array_equal(found.times[0], [[3, 1, 2], [4, 1, 3]])
    assert Findings.parse(-1, text, 7.0).failure == "took longer than 7 s"
    assert Findings.parse(11, text, 1.0).failure == "died of SIGSEGV"
    assert Findings.parse(0, text[:-4], 1.0).failure == "ended with code 0"
    assert Findings.parse(512, "error x: bad\x1b[2J\n", 1.0).failure == "x: bad[2J"
    for nonsense in (
        "time\nend\n",
        "time 0 x\nend\n",
        "deviation 0\nend\n",
        "time 0 1\ntime 0 1 2\nend\n",
    ):
        assert Findings.parse(0, nonsense, 1.0).failure == "the board's answer makes no sense"
