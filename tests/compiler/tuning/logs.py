"""What tests ask of the log of a job."""

from __future__ import annotations

import json
from pathlib import Path

from tinsmith.compiler.tuning.records import Subject, decisions_key
from tinsmith.compiler.tuning.store import Shelf, Store


def the_shelf(log: Path) -> Shelf:
    (shelf,) = Store(log).shelves()
    return shelf


def counted(shelf: Shelf) -> dict[tuple[Subject, object], int]:
    """How often each candidate stands in the log."""
    lines = (shelf.folder / "trials.jsonl").read_text().splitlines()
    counts: dict[tuple[Subject, object], int] = {}
    for line in lines:
        entry = json.loads(line)
        subject = Subject(entry["template"], entry["version"], entry["workload"])
        key = (subject, decisions_key(entry["decisions"]))
        counts[key] = counts.get(key, 0) + 1
    return counts
