"""What every command shares: errors as one line, tables or JSON, progress with ETA."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from tinsmith.compiler.cli.tables import console, fitted
from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.plain_text import plain_line
from tinsmith.passes.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")

DEBUG_VARIABLE = "TINSMITH_DEBUG"
INTERNAL_ERROR_CODE = 70
INTERRUPTED_CODE = 130
BROKEN_PIPE_CODE = 141

# Whether the command at work has printed its document, which is the only one.
_answered: ContextVar[bool] = ContextVar("_answered", default=False)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors of a command into one line on standard error and an exit code.

    With `--json` the error also goes to standard output, as `{"error": ...}`, unless the command
    has answered there: a second document would spoil the first.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        _answered.set(False)
        try:
            return command(*args, **kwargs)
        except TinsmithError as error:
            _fail(kwargs, type(error).__name__, str(error), error.exit_code)
        except BrokenPipeError:
            # Whoever read the output has enough of it (`| head`); Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE_CODE) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(kwargs, type(error).__name__, f"{place}{error.strerror or error}", 2)
        except KeyboardInterrupt:
            _fail(kwargs, "KeyboardInterrupt", "interrupted", INTERRUPTED_CODE)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            text = str(error).strip().splitlines()
            message = f"{type(error).__name__}: {text[0] if text else ''}"
            hint = "this is a bug in Tinsmith; run again with --debug for the traceback"
            _fail(kwargs, "InternalError", f"{message} ({hint})", INTERNAL_ERROR_CODE)

    return wrapper


def _fail(options: dict[str, Any], kind: str, message: str, code: int) -> NoReturn:
    line = plain_line(message)
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    if options.get("as_json") and not _answered.get():
        print(json.dumps({"error": {"type": kind, "message": line, "exit_code": code}}))
    print(f"tinsmith: error: {line}", file=sys.stderr)
    raise typer.Exit(code)


def refuse(message: str, as_json: bool) -> int:
    """Tell a mistake in how a command was called, as `reported` tells errors; the exit code."""
    try:
        _fail({"as_json": as_json}, "UsageError", message, 2)
    except typer.Exit as left:
        return int(left.exit_code)


def print_json(data: Any) -> None:
    """The one JSON document that a command with `--json` prints."""
    print(json.dumps(data, indent=2))
    _answered.set(True)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> None:
    """A table on standard output; all but the first `left` columns are right-aligned.

    Nothing of it is cut off, however narrow the terminal, but for the middle of long names.
    """
    screen = console()
    plain = [[plain_line(str(cell)) for cell in row] for row in rows]
    screen.print(fitted(plain_line(title), columns, plain, left, screen.width), soft_wrap=False)


def say(line: str) -> None:
    """One line of plain text on standard output, never wrapped."""
    print(plain_line(line))


def note(line: str) -> None:
    """A remark that is no result: on standard error."""
    print(f"note: {plain_line(line)}", file=sys.stderr)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


@contextmanager
def progress_bar(title: str, hidden: bool = False) -> Iterator[Progress]:
    """A bar with percentage, time elapsed and time left on standard error.

    Yields `show(phase, fraction)`, `fraction` being the share of the whole that is done.
    Nothing is drawn if `hidden` or if standard error is not a terminal.
    """
    if hidden:
        yield lambda phase, fraction: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    screen = Console(stderr=True)
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    with bar:
        title = plain_line(title)
        task = bar.add_task(f"{title}: starting", total=1.0)

        def show(phase: str, fraction: float) -> None:
            bar.update(task, description=f"{title}: {plain_line(phase)}", completed=fraction)

        yield show
