"""The record store: what is written is read again, and nothing else gets in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.tuning import journal
from tinsmith.compiler.tuning.lookup import StoredRecords
from tinsmith.compiler.tuning.records import Record, Subject, Trial, parse_record, parse_trial
from tinsmith.compiler.tuning.store import Shelf, Store
from tinsmith.targets.key import target_key
from tinsmith.targets.registry import get_target

SPEC = get_target("x86-64-v4")
SUBJECT = Subject("convolution", 1, "0123456789abcdef")
DECISIONS = {"rows": 7, "vectors": 2}


def record(ratio: float = 0.5, **changes: Any) -> Record:
    made = Record(SUBJECT, DECISIONS, ratio * 1e-3, 1e-3, 12, {"kernel": "conv", "model": "m"})
    return replace(made, **changes)


def shelf(folder: Path) -> Shelf:
    return Store(folder).shelf_to_write(SPEC)


def test_records_and_trials_come_back(tmp_path: Path) -> None:
    trial = Trial(SUBJECT, DECISIONS, 1e-3, 2e-3)
    failed = Trial(SUBJECT, {"rows": 1, "vectors": 1}, failure="killed by signal 11")
    shelf(tmp_path).add_records([record()])
    shelf(tmp_path).add_trials([trial, failed])
    again = Store(tmp_path).shelf(SPEC)
    assert again.records() == {SUBJECT: record()}
    assert list(again.trials()[SUBJECT].values()) == [trial, failed]
    assert again.damaged() == 0
    assert again.target()["cpu"] == SPEC.llvm_cpu


def test_the_last_record_of_a_workload_counts(tmp_path: Path) -> None:
    shelf(tmp_path).add_records([record(0.5), record(0.9)])
    assert shelf(tmp_path).records()[SUBJECT].ratio == pytest.approx(0.9)


@pytest.mark.parametrize("torn", [b'{"templ', b"\xff\xfe", b"\0" * 5000])
def test_a_torn_last_line_is_skipped_and_then_repaired(tmp_path: Path, torn: bytes) -> None:
    here = shelf(tmp_path)
    other = record(subject=replace(SUBJECT, workload="f" * 16))
    here.add_records([record()])
    path = here.folder / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert list(here.records()) == [SUBJECT]
    here.add_records([other])
    assert path.read_bytes().startswith(whole + b'{"template"')
    assert here.records() == {SUBJECT: record(), other.subject: other}


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{" * 9000)
    journal.append(path, [{"a": 1}])
    assert path.read_bytes() == b'{"a":1}\n'


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    script = f"""
import sys
from tinsmith.compiler.tuning.store import Shelf
from tinsmith.compiler.tuning.records import Subject, Trial
from pathlib import Path
for i in range(40):
    subject = Subject("convolution", 1, f"{{sys.argv[1]}}{{i:015x}}")
    Shelf(Path({str(here.folder)!r})).add_trials([Trial(subject, {{"rows": i}}, 1e-3, 1e-3)])
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, digit]) for digit in "ab"]
    assert [writer.wait(timeout=600) for writer in writers] == [0, 0]
    assert len(here.trials()) == 80
    assert here.damaged() == 0


def test_a_second_job_on_a_folder_is_refused(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    with here.exclusive():
        with pytest.raises(ConfigError, match="another tuning job"), here.exclusive():
            pass
        here.add_records([record()])
    with here.exclusive():
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"template": "../../etc"},
        {"template": 3},
        {"version": True},
        {"version": -1},
        {"workload": "0123"},
        {"decisions": {"rows": "7"}},
        {"decisions": {"rows": 2**40}},
        {"decisions": {"__class__": 1}},
        {"decisions": {f"d{i}": 1 for i in range(100)}},
        {"decisions": [7, 2]},
        {"seconds": -1.0},
        {"seconds": "fast"},
        {"default_seconds": 0},
    ],
)
def test_hostile_records_are_none(change: dict[str, Any]) -> None:
    assert parse_record(record().to_dict()) == record()
    assert parse_record(record().to_dict() | change) is None
    assert parse_trial(Trial(SUBJECT, DECISIONS, 1e-3, 2e-3).to_dict() | change) is None


@pytest.mark.parametrize("change", [{"trials": -1}, {"provenance": []}, {"provenance": {"a": 1}}])
def test_hostile_provenance_is_none(change: dict[str, Any]) -> None:
    assert parse_record(record().to_dict() | change) is None


def test_text_of_a_record_cannot_steer_a_terminal() -> None:
    data = record().to_dict() | {"provenance": {"kernel": "a\x1b[2Jb\n"}}
    parsed = parse_record(data)
    assert parsed is not None
    assert parsed.provenance == {"kernel": "a[2Jb"}


def test_a_file_is_parsed_once_for_each_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shelf(tmp_path)
    here.add_records([record(0.9)])
    reads: list[Path] = []
    read = journal.read
    monkeypatch.setattr(journal, "read", lambda path: reads.append(path) or read(path))
    for _ in range(3):
        assert here.records()[SUBJECT].ratio == pytest.approx(0.9)
        assert here.damaged_records() == 0
    assert len(reads) == 1
    Shelf(here.folder).add_records([record(0.5)])
    assert here.records()[SUBJECT].ratio == pytest.approx(0.5)
    assert len(reads) == 2


def test_damaged_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    here.add_records([record()])
    with open(here.folder / "records.jsonl", "ab") as stream:
        stream.write(b"[1]\n{}\n" + b"[" * 100_000 + b"\n" + b'{"seconds": NaN}\n')
    assert here.records() == {SUBJECT: record()}
    assert here.damaged() == 4


def test_merge_keeps_the_best_of_each(tmp_path: Path) -> None:
    ours, theirs = shelf(tmp_path / "a"), shelf(tmp_path / "b")
    second = replace(SUBJECT, workload="1" * 16)
    third = replace(SUBJECT, workload="2" * 16)
    ours.add_records([record(0.5), record(0.9, subject=second)])
    theirs.add_records(
        [record(0.6), record(0.8, subject=second), record(0.7, subject=third)],
    )
    theirs.add_trials([Trial(SUBJECT, DECISIONS, 1e-3, 2e-3)])
    assert ours.merge(theirs) == 2
    ratios = {s.workload[0]: round(r.ratio, 3) for s, r in ours.records().items()}
    assert ratios == {"0": 0.5, "1": 0.8, "2": 0.7}
    assert ours.merge(theirs) == 0
    assert sum(len(c) for c in ours.trials().values()) == 1


def test_prune_drops_what_does_not_count(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    stale = record(subject=replace(SUBJECT, version=7))
    here.add_records([record(0.9), stale, record(0.5)])
    here.add_trials([Trial(SUBJECT, DECISIONS, 1e-3, 2e-3)] * 2)
    assert here.prune({"convolution": {1}}) == (5, 2)
    assert here.records() == {SUBJECT: record(0.5)}
    assert here.prune({"convolution": {1}}, trials=True) == (2, 1)


def test_a_record_of_another_template_version_is_stale(tmp_path: Path) -> None:
    shelf(tmp_path).add_records([record(subject=replace(SUBJECT, version=2))])
    records = StoredRecords([Store(tmp_path)], SPEC)
    assert records.record(SUBJECT) is None
    assert records.stale == {SUBJECT.workload}


def test_the_first_store_decides(tmp_path: Path) -> None:
    shelf(tmp_path / "a").add_records([record(0.9)])
    shelf(tmp_path / "b").add_records([record(0.5)])
    found = StoredRecords([Store(tmp_path / "a"), Store(tmp_path / "b")], SPEC).record(SUBJECT)
    assert found is not None and found.ratio == pytest.approx(0.9)


def test_machines_have_folders_of_their_own(tmp_path: Path) -> None:
    other_cache = replace(SPEC, l3_bytes=SPEC.l3_bytes + 1)
    other_cores = replace(SPEC, cores=SPEC.cores + 1)
    keys = {target_key(spec) for spec in (SPEC, other_cache, other_cores)}
    assert len(keys) == 3
    store = Store(tmp_path)
    store.shelf_to_write(other_cache).add_records([record()])
    store.shelf_to_write(get_target("x86-64-v3"))
    assert [near.records() for near in store.near(SPEC)] == [{SUBJECT: record()}]
    assert store.shelf(SPEC).records() == {}


@pytest.mark.parametrize("content", ['{"format": 99}', "[]", "not json"])
def test_a_store_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tuning log of format .* reads format 1"):
        Store(tmp_path)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "database_workload.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is no tuning log: it has database_workload\.json"):
        Store(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Store(tmp_path / "database_workload.json")


def test_a_store_survives_being_killed_while_it_is_made(tmp_path: Path) -> None:
    shelf(tmp_path)
    (tmp_path / "store.json").unlink()
    shelf(tmp_path).add_records([record()])
    assert json.loads((tmp_path / "store.json").read_text()) == {"format": 1}
