"""Records for a compilation: which stores are asked, in which order, and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tvm.tirx import PrimFunc

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.tuning.folders import packaged_folder, user_folder
from tinsmith.compiler.tuning.records import Record, Subject, workload_key
from tinsmith.compiler.tuning.store import Store
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Template


def stores(log: Path | None) -> tuple[tuple[Store, ...], tuple[str, ...]]:
    """The stores that a compilation asks, first to last: `log`, the user's, the packaged one.

    Raises ConfigError if `log` does not exist, or is of another format. The others were not
    asked for: one that cannot be read is left out, and the second result says so.
    """
    if log is not None and not log.is_dir():
        raise ConfigError(f"--log {log}: no such folder")
    chosen = [] if log is None else [Store(log)]
    others, notes = standing_stores()
    return (*chosen, *others), notes


def standing_stores() -> tuple[tuple[Store, ...], tuple[str, ...]]:
    """The user's store and the packaged one, and a note for each that cannot be read."""
    found, notes = [], []
    for folder in (user_folder(), packaged_folder()):
        try:
            if folder.exists():  # not where HOME is no folder, for example
                found.append(Store(folder))
        except ConfigError as error:
            notes.append(f"no tuning records from there: {error}")
        except OSError as error:
            notes.append(f"no tuning records from there: {folder}: {error.strerror}")
    return tuple(found), tuple(notes)


class StoredRecords:
    """The `RecordLookup` of stores: the first that has a record for a workload decides.

    `stale` names the workloads for which there are only records of other versions of the
    template; those are never applied. `damaged` is how many lines are no records.
    """

    def __init__(self, asked: Sequence[Store], spec: TargetSpec) -> None:
        shelves = [store.shelf(spec) for store in asked]
        self._layers = [shelf.records() for shelf in shelves]
        self.damaged = sum(shelf.damaged_records() for shelf in shelves)
        self._known = {(s.template, s.workload) for layer in self._layers for s in layer}
        self.stale: set[str] = set()

    def find(self, function: PrimFunc, template: Template, spec: TargetSpec) -> Decisions | None:
        """The decisions of the first record for this function and version of the template."""
        found = self.record(Subject(template.name, template.version, workload_key(function)))
        return None if found is None else found.decisions

    def record(self, subject: Subject) -> Record | None:
        """The first record for a workload."""
        for layer in self._layers:
            if subject in layer:
                return layer[subject]
        if (subject.template, subject.workload) in self._known:
            self.stale.add(subject.workload)
        return None


def told_of_ignored(records: StoredRecords | None, unfit: int) -> str:
    """What a reader is told of records that are not applied; empty if there are none.

    `unfit` of them have decisions that the template does not have.
    """
    stale = 0 if records is None else len(records.stale)
    damaged = 0 if records is None else records.damaged
    ignored = [f"{stale} records of other versions"] if stale else []
    ignored += [f"{unfit} with decisions that the template does not have"] if unfit else []
    told = f"ignored: {', '.join(ignored)} (tune again)" if ignored else ""
    lines = f"{damaged} damaged lines of the log (`tinsmith logs prune` drops them)"
    return "; ".join(filter(None, (told, f"ignored: {lines}" if damaged else "")))


class ChosenRecords:
    """The `RecordLookup` of given records; `otherwise` knows of other workloads."""

    def __init__(self, records: Iterable[Record], otherwise: RecordLookup | None = None) -> None:
        self._records = {record.subject: record for record in records}
        self._otherwise = otherwise

    def find(self, function: PrimFunc, template: Template, spec: TargetSpec) -> Decisions | None:
        """The decisions of the record for this function and version of the template."""
        subject = Subject(template.name, template.version, workload_key(function))
        found = self._records.get(subject)
        if found is not None:
            return found.decisions
        return None if self._otherwise is None else self._otherwise.find(function, template, spec)
