"""`tinsmith logs`: what is in tuning logs, and keeping them small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.commands import MARKUP
from tinsmith.compiler.cli.options import AsJson
from tinsmith.compiler.errors import ConfigError

if TYPE_CHECKING:
    from tinsmith.compiler.tuning.records import Record, Subject, Trial
    from tinsmith.compiler.tuning.store import Shelf, Store

app = typer.Typer(
    help="List, show, merge, prune and export tuning records.",
    no_args_is_help=True,
    add_completion=False,  # it is that of `tinsmith`
    rich_markup_mode=MARKUP,
)
Log = Annotated[
    Path | None, typer.Option("--log", metavar="DIR", help="Default: the user's cache.")
]
Target = Annotated[
    str,
    typer.Option(
        "--target", metavar="NAME", help="Name, or beginning of the name, of a folder in the log."
    ),
]


@app.command("list")
@output.reported
def list_logs(log: Log = None, as_json: AsJson = False) -> None:
    """The machines in a log, with their numbers of records and trials.

    **Example:** `tinsmith logs list --log tuning_logs/`
    """
    store = _store(log)
    with output.progress_bar("logs list", hidden=as_json) as show:
        show("known templates", 0.0)
        versions = _versions()
        show("records", 0.5)
        rows = [
            {
                "target": shelf.name,
                "records": len(shelf.records()),
                "stale": sum(_is_stale(record, versions) for record in shelf.records()),
                "trials": sum(len(tried) for tried in shelf.trials().values()),
                "damaged_lines": shelf.damaged(),
            }
            for shelf in store.shelves()
        ]
    if as_json:
        output.print_json(rows)
        return
    header = ("target", "records", "stale", "trials", "damaged lines")
    output.print_table(str(_folder(log)), header, [tuple(row.values()) for row in rows])


@app.command("show")
@output.reported
def show_log(log: Log = None, target: Target = "", as_json: AsJson = False) -> None:
    """The records of a log, and the candidates that failed.

    **Example:** `tinsmith logs show --target x86-64-v4`
    """
    shelves = [shelf for shelf in _store(log).shelves() if shelf.name.startswith(target)]
    if not shelves:
        raise ConfigError(f"{_folder(log)}: no target whose name begins with {target!r}")
    if as_json:
        output.print_json([_told(shelf) for shelf in shelves])
        return
    with output.progress_bar("logs show") as show:
        show("known templates", 0.0)
        versions = _versions()
    for shelf in shelves:
        _print(shelf, versions)


@app.command("merge")
@output.reported
def merge_logs(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The log to take from.")],
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Take over what is better in another log, and its trials.

    **Example:** `tinsmith logs merge from_the_board/ --log tuning_logs/`
    """
    _copy(_existing(source), _folder(log), trials=True, as_json=as_json)


@app.command("export")
@output.reported
def export_log(
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The log to write to.")],
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Write the records, without the trials, to another log.

    **Example:** `tinsmith logs export for_the_others/`
    """
    _copy(_store(log), destination, trials=False, as_json=as_json)


@app.command("prune")
@output.reported
def prune_log(
    log: Log = None,
    trials: Annotated[bool, typer.Option("--trials", help="Drop all trials, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop what does not count any more: superseded, damaged, of old template versions.

    **Example:** `tinsmith logs prune --trials`
    """
    store = _store(log)
    with output.progress_bar("logs prune", hidden=as_json) as show:
        show("known templates", 0.0)
        versions = _versions()
        show("records", 0.5)
        pruned = [(shelf.name, *shelf.prune(versions, trials=trials)) for shelf in store.shelves()]
    if as_json:
        keys = ("target", "lines_before", "lines")
        output.print_json([dict(zip(keys, row, strict=True)) for row in pruned])
        return
    for name, before, after in pruned:
        output.say(f"{name}: {before} lines became {after}")


def _folder(log: Path | None) -> Path:
    from tinsmith.compiler.tuning.folders import user_folder

    return log or user_folder()


def _store(log: Path | None) -> Store:
    return _existing(_folder(log))


def _existing(folder: Path) -> Store:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    from tinsmith.compiler.tuning.store import Store

    return Store(folder)


def _versions() -> dict[str, set[int]]:
    """The versions of each template that count; imports TVM, which takes a second."""
    from tinsmith.compiler.tuning.records import ALGORITHM
    from tinsmith.targets.registry import backends

    found: dict[str, set[int]] = {}
    for backend in backends():
        for template in backend.templates:
            found.setdefault(template.name, set()).add(template.version)
        found.setdefault(ALGORITHM, set()).add(backend.algorithms.version)
    return found


def _is_stale(subject: Subject, versions: Mapping[str, Collection[int]]) -> bool:
    return subject.version not in versions.get(subject.template, ())


def _copy(source: Store, destination: Path, *, trials: bool, as_json: bool) -> None:
    from tinsmith.compiler.tuning.store import Store

    found = list(source.shelves())
    if not found:
        raise ConfigError(f"{source.folder}: has no records")
    target = Store(destination)
    rows = []
    for shelf in found:
        taken = target.make_shelf(shelf.name, shelf.target()).merge(shelf, trials=trials)
        rows.append({"target": shelf.name, "taken": taken, "records": len(shelf.records())})
        if not as_json:
            output.say(f"{shelf.name}: {taken} of {len(shelf.records())} records taken over")
    if as_json:
        output.print_json(rows)


def _failed(shelf: Shelf) -> list[Trial]:
    return [trial for tried in shelf.trials().values() for trial in tried.values() if trial.failure]


def _told(shelf: Shelf) -> dict[str, Any]:
    return {
        "name": shelf.name,
        "target": shelf.target(),
        "records": [record.to_dict() for record in _best_first(shelf)],
        "failed": [trial.to_dict() for trial in _failed(shelf)],
    }


def _best_first(shelf: Shelf) -> list[Record]:
    return sorted(shelf.records().values(), key=lambda record: record.ratio)


def _print(shelf: Shelf, versions: Mapping[str, Collection[int]]) -> None:
    output.print_table(
        shelf.name,
        ("kernel", "template", "decisions", "ratio", "us", "trials", "model", "date"),
        [
            (
                record.provenance.get("kernel", record.subject.workload),
                f"{record.subject.template} {record.subject.version}"
                + (" (stale)" if _is_stale(record.subject, versions) else ""),
                " ".join(f"{name}={value}" for name, value in record.decisions.items()),
                f"{record.ratio:.3f}",
                f"{record.seconds * 1e6:.1f}",
                record.trials,
                record.provenance.get("model", ""),
                record.provenance.get("date", ""),
            )
            for record in _best_first(shelf)
        ],
        left=3,
    )
    for trial in _failed(shelf):
        decided = " ".join(f"{name}={value}" for name, value in trial.decisions.items())
        output.say(f"failed: {trial.subject.template} {decided}: {trial.failure}")
