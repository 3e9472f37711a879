"""The command line, `tinsmith`: one command per task.

Every command takes `--json` and prints one JSON document then; errors are one line
on standard error. Exit codes: 0 success, 1 a verification failed, 2 something the
user can mend, 70 a bug in Tinsmith, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.commands import MARKUP
from tinsmith.compiler.cli.usage import Commands
from tinsmith.compiler.module.version import tinsmith_version

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    name="tinsmith",
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Add `--debug` to any command for the traceback of an error.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.say(f"tinsmith {tinsmith_version()}")
        raise typer.Exit


@app.callback()
def tinsmith(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Trained model in; small, fast, verified module out.

    **Example:** `tinsmith compile model.onnx -o out/`, then `tinsmith run out/ --input x=x.npy`

    `tinsmith doctor` tells whether everything is there.
    """


def main() -> None:
    """Entry point of the console script."""
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[output.DEBUG_VARIABLE] = "1"
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter shows its code.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
