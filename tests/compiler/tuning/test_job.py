"""Whole jobs on a small model: what they find, remember, survive and refuse."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tests.compiler.tuning.logs import counted, the_shelf
from tinsmith.compiler.cli import app
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, TargetError
from tinsmith.compiler.tuning import job as job_module
from tinsmith.compiler.tuning.records import Record, decisions_key
from tinsmith.compiler.tuning.report import JobView, TuneOptions
from tinsmith.compiler.tuning.runner import LocalRunner, NoDeviceError
from tinsmith.compiler.tuning.store import Store
from tinsmith.compiler.tuning.tasks import Task
from tinsmith.targets.key import describe
from tinsmith.targets.registry import get_target
from tinsmith.targets.template import UNFIT

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def tuned(
    small_model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tinsmith.TuneReport, Path, list[JobView]]:
    """A job of a few trials, its log, and what it showed."""
    log = tmp_path_factory.mktemp("log")
    views: list[JobView] = []
    options = TuneOptions(minutes=30.0, trials=8, log=log)
    report = tinsmith.tune(small_model_file, options=options, progress=views.append)
    return report, log, views


def test_a_job_measures_and_remembers(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]],
) -> None:
    report, log, views = tuned
    shelf = the_shelf(log)
    assert 0 < report.trials == sum(counted(shelf).values())
    assert set(counted(shelf).values()) == {1}
    assert all(row.ratio <= 1.0 for row in report.rows)
    assert 0.0 < report.overhead < 1.0
    assert all(row.trials <= 8 for row in report.rows)
    assert len(shelf.records()) == len(report.rows)
    assert {view.phase for view in views} >= {"lowering", "profiling", "searching", "confirming"}
    assert json.loads(json.dumps(report.to_dict()))["kept"] == report.kept
    spec = get_target("native")
    assert shelf.target()["cpu"] == spec.llvm_cpu


def test_the_same_job_again_has_nothing_to_do(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]], small_model_file: Path
) -> None:
    _, log, _ = tuned
    again = tinsmith.tune(small_model_file, options=TuneOptions(trials=8, log=log))
    assert again.trials == 0
    assert "nothing to search" in again.summary()


def test_a_finished_job_is_known_before_the_model_is_lowered(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]],
    small_model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, log, _ = tuned

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("lowered")

    monkeypatch.setattr(job_module, "prepare", refuse)
    assert tinsmith.tune(small_model_file, options=TuneOptions(log=log)).trials == 0
    with pytest.raises(AssertionError, match="lowered"):
        tinsmith.tune(small_model_file, options=TuneOptions(log=tmp_path))


def test_a_finished_job_searches_on_when_asked(small_model_file: Path, tmp_path: Path) -> None:
    first = tinsmith.tune(small_model_file, options=TuneOptions(trials=1, log=tmp_path))
    before = the_shelf(tmp_path).records()
    assert first.trials == len(first.rows) == len(before)
    assert tinsmith.tune(small_model_file, options=TuneOptions(log=tmp_path)).trials == 0
    again = tinsmith.tune(small_model_file, options=TuneOptions(log=tmp_path, resume=True))
    assert {row.kernel for row in again.rows} == {row.kernel for row in first.rows}
    assert again.trials > 0
    assert set(counted(the_shelf(tmp_path)).values()) == {1}
    for subject, record in the_shelf(tmp_path).records().items():
        assert record == before[subject] or record.ratio < before[subject].ratio


def test_a_kernel_that_no_template_tiles_is_searched_too(tmp_path: Path) -> None:
    model = tmp_path / "volume.onnx"
    weights = np.random.default_rng(0).normal(size=(24, 24, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6)],
        "volume",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 24, 12, 12, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 24, 12, 12, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), model)
    report = tinsmith.tune(model, options=TuneOptions(trials=24, log=tmp_path / "log"))
    assert report.kept
    (record,) = the_shelf(tmp_path / "log").records().values()
    assert record.subject.template == "reduction"
    assert record.decisions["sample"] > 0 and record.ratio < 1
    options = {"static_library": False, "runner": False, "log": tmp_path / "log"}
    built = tinsmith.compile_to(model, tmp_path / "module", **options)
    assert built.coverage.startswith("1 of 1 ")
    assert all(difference.relative < 1e-5 for difference in built.differences)


def test_a_compilation_takes_the_records(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]], small_model_file: Path, tmp_path: Path
) -> None:
    report, log, _ = tuned
    options = {"static_library": False, "runner": False}
    with_log = tinsmith.compile_to(small_model_file, tmp_path / "a", log=log, **options)
    without = tinsmith.compile_to(small_model_file, tmp_path / "b", tuned=False, **options)
    assert f"{len(report.rows)} of " in with_log.coverage
    assert without.coverage.startswith("0 of ")
    told = with_log.manifest.measured.tuning
    assert told is not None and told.coverage == with_log.coverage
    kernels = {entry.name for entry in with_log.manifest.kernels if entry.source == "record"}
    assert {record.kernel for record in told.records} == kernels
    assert all(0 < record.ratio <= 1 and record.date for record in told.records)
    sources = {entry.source for entry in with_log.manifest.kernels if entry.decisions}
    assert "record" in sources
    x = np.ones((1, 3, 8, 8), np.float32)
    with tinsmith.load(tmp_path / "a") as first, tinsmith.load(tmp_path / "b") as second:
        np.testing.assert_allclose(first(x)["scores"], second(x)["scores"], rtol=1e-4)


def test_records_that_no_template_would_choose_are_not_applied(
    small_model_file: Path, tmp_path: Path, tuned: tuple[tinsmith.TuneReport, Path, list[JobView]]
) -> None:
    _, log, _ = tuned
    source = the_shelf(log)
    hostile = Store(tmp_path / "log").make_shelf(source.name, source.target())
    lines = (source.folder / "records.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        entry["decisions"] = dict.fromkeys(entry["decisions"], 2**30)
    (hostile.folder / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    options = {"static_library": False, "runner": False}
    report = tinsmith.compile_to(small_model_file, tmp_path / "m", log=tmp_path / "log", **options)
    assert report.coverage.startswith("0 of ")
    told = f"ignored: {len(entries)} with decisions that the template does not have (tune again)"
    assert report.coverage.endswith(told)
    assert {e.source for e in report.manifest.kernels} == {"default", UNFIT}
    # Nor are those of another version of a template.
    for entry in entries:
        entry["version"] += 1
    (hostile.folder / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    report = tinsmith.compile_to(small_model_file, tmp_path / "n", log=tmp_path / "log", **options)
    assert f"ignored: {len(entries)} records of other versions (tune again)" in report.coverage
    # Lines that are no records are counted too.
    (hostile.folder / "records.jsonl").write_text("{}\n[\n")
    report = tinsmith.compile_to(small_model_file, tmp_path / "o", log=tmp_path / "log", **options)
    assert "ignored: 2 damaged lines of the log" in report.coverage


def test_other_machines_cannot_be_tuned_here(small_model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="measured on this machine"):
        tinsmith.tune(
            small_model_file,
            config=CompileConfig(target="cortex-a72"),
            options=TuneOptions(log=tmp_path / "log"),
        )
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "pdp-11"], "unknown target 'pdp-11'"),
        (["--target", "cuda"], "target 'cuda': there are no kernels for GPUs"),
        (["--minutes", "0"], "minutes must be more than 0"),
        (["--trials", "0"], "trials must be an integer of at least 1"),
        (["--calibration", "random"], "--calibration is for quantising"),
        (["--resume", "--fresh"], "choose one"),
        (["--job", "jobs.toml"], "either MODEL.onnx or --job"),
    ],
)
def test_bad_options_are_one_line(
    small_model_file: Path, arguments: list[str], message: str
) -> None:
    result = RUNNER.invoke(app, ["tune", str(small_model_file), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_foreign_log_is_refused(small_model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "database_tuning_record.json").write_text("[]")
    for arguments in (
        ["tune", str(small_model_file)],
        ["logs", "list"],
        ["compile", str(small_model_file), "-o", str(tmp_path / "out")],
    ):
        result = RUNNER.invoke(app, [*arguments, "--log", str(tmp_path)])
        assert result.exit_code == 2
        assert "is no tuning log" in result.stderr


def test_a_foreign_store_of_the_user_does_not_stop_a_compilation(
    small_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinsmith" / "tuning").mkdir(parents=True)
    (tmp_path / "tinsmith" / "tuning" / "store.json").write_text('{"format": 99}')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"static_library": False, "runner": False}
    report = tinsmith.compile_to(small_model_file, tmp_path / "m", **options)
    (told,) = (note for note in report.notes if "no tuning records from there" in note)
    assert "format 99" in told
    # A job would write there.
    result = RUNNER.invoke(app, ["tune", str(small_model_file)])
    assert result.exit_code == 2
    assert "a tuning log of format 99" in result.stderr


def test_kernels_of_another_model_have_their_records(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]], small_model_file: Path, tmp_path: Path
) -> None:
    import onnx
    from onnx import helper

    _, log, _ = tuned
    shutil.copytree(log, tmp_path / "log")
    model = onnx.load(small_model_file)
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["shares"]))
    model.graph.output[0].name = "shares"
    onnx.save(model, tmp_path / "other.onnx")
    report = tinsmith.tune(tmp_path / "other.onnx", options=TuneOptions(log=tmp_path / "log"))
    assert ("fused_convolution_add_relu", "has a record") in [
        (name.split()[0].rstrip("0123456789"), reason) for name, reason in report.left_alone
    ]
    assert not [row for row in report.rows if row.template == "convolution"]


def test_a_job_begins_with_the_records_of_near_machines(
    small_tasks: tuple[Task, ...], small_model_file: Path, tmp_path: Path
) -> None:
    task = max(small_tasks, key=lambda task: len(task.space))
    wanted = task.space[-1]
    near = describe(get_target("native")) | {"l2_bytes": 1}
    shelf = Store(tmp_path).make_shelf("near", near)
    shelf.add_records([Record(task.subject, wanted, 1e-6, 2e-6)])
    tinsmith.tune(small_model_file, options=TuneOptions(trials=1, log=tmp_path))
    (own,) = (shelf for shelf in Store(tmp_path).shelves() if shelf.name != "near")
    assert list(own.trials()[task.subject]) == [decisions_key(wanted)]


def test_a_model_with_nothing_to_decide_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "add.onnx")
    with pytest.raises(ConfigError, match="nothing can be tuned"):
        tinsmith.tune(tmp_path / "add.onnx", options=TuneOptions(log=tmp_path / "log"))


def test_a_second_job_waits_for_nobody(small_model_file: Path, tmp_path: Path) -> None:
    shelf = Store(tmp_path).shelf_to_write(get_target("native"))
    with shelf.exclusive(), pytest.raises(ConfigError, match="another tuning job"):
        tinsmith.tune(small_model_file, options=TuneOptions(log=tmp_path))


def test_a_job_whose_boards_are_lost_fails(
    small_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(LocalRunner):
        def measurer(self, *_: object) -> Any:
            raise NoDeviceError("no board is left: for a test")

    lost = Lost(get_target("native"), 2)
    monkeypatch.setattr(job_module, "_runner", lambda *_: nullcontext(lost))
    command = ["tune", str(small_model_file), "--log", str(tmp_path), "--json"]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    told = "no board is left: for a test; 0 trials of this job are kept: with another board"
    assert told in error["message"] and told in result.stderr
    assert not the_shelf(tmp_path).finished_jobs()


def test_wrong_types_in_job_files(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.toml"
    for content, message in (
        ("model = 3", "model must be text, not 3"),
        ('minutes = "ten"', "minutes must be a number, not 'ten'"),
        ("minutes = true", "minutes must be a number, not True"),
        ("minutes = inf", "minutes must be more than 0 and at most 10000, not inf"),
        ("trials = 1.5", "trials must be an integer, not 1.5"),
        ("trials = 0", "trials must be an integer of at least 1"),
        ("threads = []", "threads must be an integer, not []"),
        ("target = 1979-05-27", "target must be text, not datetime.date(1979, 5, 27)"),
        ("shapes = [1, 3]", "shapes must be a table such as"),
        ("shapes = { x = 3 }", "shapes: x must be a list of sizes such as [1, 3, 224, 224], not 3"),
        ('shapes = { x = [1, "n"] }', "shapes: x must be a list of sizes"),
        ("quantize = {}", "quantize must be text, not {}"),
        ('quantize = "int9"', "choose from int8"),
        ('rpc = "localhost:9190"', "belong together"),
    ):
        model = "" if content.startswith("model") else 'model = "a.onnx"\n'
        jobs.write_text(f'[[job]]\nmodel = "b.onnx"\n[[job]]\n{model}{content}\n')
        result = RUNNER.invoke(app, ["tune", "--job", str(jobs)])
        assert result.exit_code == 2, content
        assert f"--job {jobs}: job 2: " in result.stderr and message in result.stderr, content
        assert len(result.stderr.strip().splitlines()) == 1
    for content, message in (
        ("job = [1, 2]", "expected a [[job]] table, not 1"),
        ("job = 1", "expected [[job]] tables"),
    ):
        jobs.write_text(content)
        result = RUNNER.invoke(app, ["tune", "--job", str(jobs)])
        assert result.exit_code == 2 and message in result.stderr
    result = RUNNER.invoke(app, ["tune", "--job", str(tmp_path)])
    assert result.exit_code == 2 and "is not a file" in result.stderr


def test_job_files(small_model_file: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.toml"
    log = ["--log", str(tmp_path / "log"), "--json"]
    jobs.write_text('[[job]]\nmodel = "missing.onnx"\n')
    result = RUNNER.invoke(app, ["tune", "--job", str(jobs), *log])
    assert result.exit_code == 2
    assert "1 of 1 jobs failed: missing.onnx for native" in result.stderr
    for content, message in (
        ("[[job]]\nmodle = 1\n", "unknown key modle"),
        ("[[job]]\nminutes = 1\n", "no model"),
        ("minutes = 1\n", "expected [[job]] tables"),
        ("[[job", "jobs.toml"),
    ):
        jobs.write_text(content)
        result = RUNNER.invoke(app, ["tune", "--job", str(jobs), *log])
        assert result.exit_code == 2
        assert message in result.stderr
    model = os.path.relpath(small_model_file, tmp_path)
    here = f'[[job]]\nmodel = "{model}"\nminutes = 30\ntrials = 2\ntasks = 1\n'
    jobs.write_text(here)
    result = RUNNER.invoke(app, ["tune", "--job", str(jobs), *log])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["trials"] == 2
    # The job for another machine fails, those before and after it are done.
    jobs.write_text(f'{here}[[job]]\nmodel = "{model}"\ntarget = "cortex-a72"\n{here}')
    result = RUNNER.invoke(app, ["tune", "--job", str(jobs), *log])
    assert result.exit_code == 2
    assert "1 of 3 jobs failed: small.onnx for cortex-a72" in result.stderr
    first, failed, last = json.loads(result.stdout)
    assert first["target"] == last["target"] == "native"
    assert failed["target"] == "cortex-a72" and "another" in failed["error"]
    result = RUNNER.invoke(app, ["tune", "--job", str(jobs), *log[:-1]])
    assert "cortex-a72" in result.stdout


def test_logs_commands(
    tuned: tuple[tinsmith.TuneReport, Path, list[JobView]], tmp_path: Path
) -> None:
    report, log, _ = tuned
    copy = tmp_path / "copy"
    exported = RUNNER.invoke(app, ["logs", "export", str(copy), "--log", str(log)])
    assert exported.exit_code == 0, exported.stderr
    listed = RUNNER.invoke(app, ["logs", "list", "--log", str(copy), "--json"])
    (row,) = json.loads(listed.stdout)
    assert (row["records"], row["trials"], row["stale"]) == (len(report.rows), 0, 0)
    merged = RUNNER.invoke(app, ["logs", "merge", str(log), "--log", str(copy)])
    assert f"0 of {len(report.rows)} records" in merged.stdout
    assert sum(counted(the_shelf(copy)).values()) == report.trials
    pruned = RUNNER.invoke(app, ["logs", "prune", "--trials", "--log", str(copy)])
    assert pruned.exit_code == 0
    assert not the_shelf(copy).trials()
    shown = RUNNER.invoke(app, ["logs", "show", "--log", str(copy), "--json"])
    (machine,) = json.loads(shown.stdout)
    assert machine["name"] == row["target"] and len(machine["records"]) == len(report.rows)
    missing = RUNNER.invoke(app, ["logs", "list", "--log", str(tmp_path / "none")])
    assert missing.exit_code == 2 and "no such folder" in missing.stderr
