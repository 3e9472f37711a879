"""What jobs survive: being killed at any moment, being interrupted, candidates that misbehave."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tinsmith
from tests.compiler.tuning.logs import counted, the_shelf
from tinsmith.compiler.cli import app
from tinsmith.compiler.tuning.records import Subject
from tinsmith.compiler.tuning.report import TuneOptions

RUNNER = CliRunner()


def command(model: Path, log: Path) -> list[str]:
    options = ["--minutes", "30", "--trials", "12", "--log", str(log), "--json"]
    return [sys.executable, "-m", "tinsmith.compiler.cli", "tune", str(model), *options]


def wait_for_a_trial(job: subprocess.Popen[str], log: Path) -> None:
    """Without, every signal would come before anything has happened."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and job.poll() is None:
        if any(path.stat().st_size for path in log.glob("*/trials.jsonl")):
            return
        time.sleep(0.05)


def kill_and_resume(model: Path, log: Path, moments: list[float]) -> None:
    """Kill jobs of the same log, run one to its end, and check what the log has."""
    before: dict[tuple[Subject, object], int] = {}
    for moment in moments:
        job = subprocess.Popen(
            command(model, log), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        try:
            wait_for_a_trial(job, log)
            time.sleep(moment)
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
        shelf = the_shelf(log)
        now = {(subject, key): 1 for subject, tried in shelf.trials().items() for key in tried}
        assert set(before) <= set(now), "a trial was lost"
        before = now
    result = subprocess.run(command(model, log), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    shelf = the_shelf(log)
    final = counted(shelf)
    assert set(before) <= set(final)
    assert set(final.values()) == {1}, "a trial was repeated"
    assert shelf.damaged() == 0
    assert not (shelf.folder / "scratch").exists()
    records = shelf.records().values()
    assert records and not any(record.is_early for record in records)


def test_a_killed_job_goes_on(small_model_file: Path, tmp_path: Path) -> None:
    kill_and_resume(small_model_file, tmp_path / "log", [0.1, 0.9])


def test_an_interrupted_job_keeps_its_trials(small_model_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Tests that run in the background of a shell ignore the signal, and so would the job.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    job = subprocess.Popen(
        command(small_model_file, log),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    wait_for_a_trial(job, log)
    job.send_signal(signal.SIGINT)
    _, told = job.communicate(timeout=600)
    assert job.returncode == 130, told
    assert "the same command goes on" in told
    shelf = the_shelf(log)
    assert shelf.trials() and shelf.damaged() == 0
    assert not (shelf.folder / "scratch").exists()
    with shelf.exclusive():
        pass


@pytest.mark.slow
def test_a_job_that_is_killed_at_twenty_moments_goes_on(
    small_model_file: Path, tmp_path: Path
) -> None:
    moments = np.random.default_rng(0).uniform(0.0, 6.0, 20)
    kill_and_resume(small_model_file, tmp_path / "log", [float(moment) for moment in moments])


def test_candidates_that_misbehave_do_not_stop_the_job(
    small_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("MISBEHAVE_AT", "rows=4,vectors=1")
    options = TuneOptions(
        minutes=30.0, trials=6, tasks=1, log=tmp_path, extensions=("misbehaving",)
    )
    report = tinsmith.tune(small_model_file, options=options)
    (row,) = report.rows
    assert row.failures >= 1
    assert row.trials > row.failures
    failed = [
        trial.failure
        for tried in the_shelf(tmp_path).trials().values()
        for trial in tried.values()
        if trial.failure
    ]
    assert failed and all("SIGSEGV" in reason for reason in failed)
    listed = RUNNER.invoke(app, ["logs", "show", "--log", str(tmp_path)])
    assert "died of SIGSEGV" in listed.stdout
