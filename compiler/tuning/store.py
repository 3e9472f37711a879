"""The record store: one folder for each machine, JSON lines, data only.

tuning_logs/
  store.json                     the format of the store
  x86-64-v4-2-cores-1f0a92b3c4/
    target.json                  the machine, described
    records.jsonl                the best decisions; the last line of a workload counts
    trials.jsonl                 everything that was measured, and what failed
    workloads.jsonl              numbers that describe workloads, for the cost model
    jobs.jsonl                   jobs that have come to their end
    scratch/                     modules of the job at work
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.module.manifest import write_atomically
from tinsmith.compiler.tuning import journal
from tinsmith.compiler.tuning.records import (
    Record,
    Subject,
    Trial,
    decisions_key,
    parse_record,
    parse_trial,
    parse_workload,
)
from tinsmith.targets.key import describe, is_near, target_key
from tinsmith.targets.spec import TargetSpec

# 1 (2026-11): records and trials as JSON lines.
FORMAT = 1
_STORE, _TARGET = "store.json", "target.json"
_RECORDS, _TRIALS = "records.jsonl", "trials.jsonl"
_WORKLOADS, _JOBS = "workloads.jsonl", "jobs.jsonl"
# Files of a package that a store may be shipped in.
_HARMLESS = {"README.md", "__init__.py", "__pycache__"}


class Shelf:
    """The records and trials for one machine, in a folder of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What was read of each file, and of which state of it: stores grow to many lines.
        self._known: dict[str, tuple[object, list[Any], int]] = {}

    @property
    def name(self) -> str:
        """The key of the machine."""
        return self.folder.name

    def target(self) -> dict[str, Any]:
        """The machine, as `target_key.describe` gives it; empty if the file is damaged."""
        try:
            found = json.loads((self.folder / _TARGET).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def records(self) -> dict[Subject, Record]:
        """The record that counts for each workload."""
        return {record.subject: record for record in self._read(_RECORDS, parse_record)[0]}

    def trials(self) -> dict[Subject, dict[tuple[tuple[str, int], ...], Trial]]:
        """The last trial of each candidate, by workload and `decisions_key`."""
        found: dict[Subject, dict[tuple[tuple[str, int], ...], Trial]] = {}
        for trial in self._read(_TRIALS, parse_trial)[0]:
            found.setdefault(trial.subject, {})[decisions_key(trial.decisions)] = trial
        return found

    def workloads(self) -> dict[str, dict[str, int]]:
        """The numbers that describe each workload, by its key."""
        return dict(self._read(_WORKLOADS, parse_workload)[0])

    def finished_jobs(self) -> set[str]:
        """The digests of jobs that have come to their end."""
        jobs = self._read(_JOBS, lambda entry: entry.get("job"))[0]
        return {job for job in jobs if isinstance(job, str)}

    def damaged_records(self) -> int:
        """Lines among the records that are none."""
        return self._read(_RECORDS, parse_record)[1]

    def damaged(self) -> int:
        """Lines that are neither records nor trials."""
        return self.damaged_records() + self._read(_TRIALS, parse_trial)[1]

    def add_records(self, records: Iterable[Record]) -> None:
        """Append records; they are on the disk when this returns."""
        with self._locked():
            journal.append(self.folder / _RECORDS, [record.to_dict() for record in records])

    def add_trials(self, trials: Iterable[Trial]) -> None:
        """Append trials; they are on the disk when this returns."""
        with self._locked():
            journal.append(self.folder / _TRIALS, [trial.to_dict() for trial in trials])

    def add_workloads(self, numbers: Mapping[str, Mapping[str, int]]) -> None:
        """Append the numbers of workloads that are not known yet."""
        known = self.workloads()
        with self._locked():
            journal.append(
                self.folder / _WORKLOADS,
                [
                    {"workload": key, "numbers": dict(own)}
                    for key, own in numbers.items()
                    if key not in known
                ],
            )

    def add_finished_jobs(self, digests: Iterable[str]) -> None:
        """Remember that jobs have come to their end."""
        with self._locked():
            journal.append(self.folder / _JOBS, [{"job": digest} for digest in digests])

    def merge(self, other: Shelf, *, trials: bool = True) -> int:
        """Take over each record of `other` that is better than ours, and its `trials`.

        The ratio to the template's default decides: both times of a record are of one
        moment of one machine. Answers how many records were taken over.
        """
        own, own_trials = self.records(), self.trials()
        better = [
            record
            for subject, record in other.records().items()
            if subject not in own or record.ratio < own[subject].ratio
        ]
        self.add_records(better)
        if trials:
            self.add_workloads(other.workloads())
            self.add_trials(
                trial
                for subject, candidates in other.trials().items()
                for key, trial in candidates.items()
                if key not in own_trials.get(subject, {})
            )
        return len(better)

    def prune(
        self, versions: Mapping[str, Collection[int]], *, trials: bool = False
    ) -> tuple[int, int]:
        """Rewrite the files without what does not count any more.

        Left out are superseded and damaged lines, what is not of one of the template
        `versions` in use, and with `trials` all trials. Answers the lines before and after.
        """

        def is_current(subject: Subject) -> bool:
            return subject.version in versions.get(subject.template, ())

        with self._locked():
            before = self._lines()
            kept = [r.to_dict() for s, r in sorted(self.records().items()) if is_current(s)]
            tried = [
                trial.to_dict()
                for subject, candidates in sorted(self.trials().items())
                if is_current(subject) and not trials
                for trial in candidates.values()
            ]
            journal.rewrite(self.folder / _RECORDS, kept)
            journal.rewrite(self.folder / _TRIALS, tried)
            return before, self._lines()

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the one tuning job on this folder; raises ConfigError if there is another."""
        return journal.locked(
            self.folder / "job.lock",
            wait=False,
            busy=f"{self.folder}: another tuning job is at work here; wait for it to end, "
            "or give --log another folder",
        )

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """A folder for the files of the one job; what a killed job has left there is deleted."""
        folder = self.folder / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _locked(self) -> AbstractContextManager[None]:
        return journal.locked(self.folder / "write.lock")

    def _lines(self) -> int:
        files = [self.folder / name for name in (_RECORDS, _TRIALS)]
        return sum(path.read_bytes().count(b"\n") for path in files if path.exists())

    def _read(self, name: str, parse: Any) -> tuple[list[Any], int]:
        """What a file holds, parsed, and how many lines are damaged; once for each state of it."""
        path = self.folder / name
        state = journal.state(path)
        known = self._known.get(name)
        if known is None or known[0] != state:
            entries, damaged = journal.read(path)
            parsed = [parse(entry) for entry in entries]
            good = [entry for entry in parsed if entry is not None]
            known = self._known[name] = state, good, damaged + len(parsed) - len(good)
        return known[1], known[2]


class Store:
    """A folder of shelves. Raises ConfigError for a folder that is something else."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists():
            self._check()

    def shelves(self) -> Iterator[Shelf]:
        """What the store has for each machine, by name."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if (path / _TARGET).is_file() and not path.is_symlink():
                    yield Shelf(path)

    def shelf(self, spec: TargetSpec) -> Shelf:
        """What the store has for one machine; nothing is made on the disk."""
        return Shelf(self.folder / target_key(spec))

    def near(self, spec: TargetSpec) -> Iterator[Shelf]:
        """The shelves of other machines with the same instructions."""
        own = describe(spec)
        for shelf in self.shelves():
            if shelf.name != target_key(spec) and is_near(shelf.target(), own):
                yield shelf

    def make_shelf(self, name: str, target: Mapping[str, Any]) -> Shelf:
        """The shelf of a machine, made if it is missing. Raises ConfigError if it cannot be."""
        folder = self.folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with journal.locked(folder / "write.lock"):
                for path, content in (
                    (self.folder / _STORE, {"format": FORMAT}),
                    (folder / _TARGET, dict(target)),
                ):
                    if not path.exists():
                        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"--log {self.folder}: {error.strerror}") from error
        return Shelf(folder)

    def shelf_to_write(self, spec: TargetSpec) -> Shelf:
        """The shelf of `spec`, made if it is missing."""
        return self.make_shelf(target_key(spec), describe(spec))

    def _check(self) -> None:
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: is a file; a tuning log is a folder")
        path = self.folder / _STORE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.get("format") if isinstance(content, dict) else None
        except FileNotFoundError as error:
            # A job may have been killed between making the folder and the file.
            foreign = [
                p.name
                for p in self.folder.iterdir()
                if p.name not in _HARMLESS and not p.name.startswith(".") and not _is_shelf(p)
            ]
            if foreign:
                raise ConfigError(
                    f"{self.folder}: is no tuning log: it has {min(foreign)} and no {_STORE}"
                ) from error
            return
        except (ValueError, RecursionError):
            found = None
        if found != FORMAT:
            raise ConfigError(
                f"{self.folder}: a tuning log of format {found!r}; this version of Tinsmith reads "
                f"format {FORMAT}"
            )


def _is_shelf(path: Path) -> bool:
    if not path.is_dir():
        return False
    # What begins with a dot is scratch of a writer that was killed.
    names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    return names <= {"write.lock", _TARGET}
