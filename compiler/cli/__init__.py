"""The command line, `tinsmith`: one command per task.

Every command takes `--json` and prints one JSON document then; errors are one line
on standard error. Exit codes: 0 success, 1 a verification failed, 2 something the
user can mend, 70 a bug in Tinsmith, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tinsmith.compiler.cli import (
    bench_command,
    compile_command,
    demo_command,
    doctor_command,
    inspect_command,
    logs_command,
    output,
    pack_command,
    prune_command,
    run_command,
    sensitivity_command,
    targets_command,
    tune_command,
    verify_command,
)
from tinsmith.compiler.cli.usage import Commands
from tinsmith.compiler.module.version import tinsmith_version

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    name="tinsmith",
    no_args_is_help=True,
    rich_markup_mode="markdown",
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


_COMMANDS: dict[str, Callable[..., None]] = {
    "compile": compile_command.compile_model,
    "prune": prune_command.prune_model,
    "sensitivity": sensitivity_command.measure_model,
    "tune": tune_command.tune_model,
    "run": run_command.run_module,
    "bench": bench_command.bench_module,
    "verify": verify_command.verify_module,
    "inspect": inspect_command.inspect_module,
    "pack": pack_command.pack_module,
    "targets": targets_command.list_targets,
    "demo": demo_command.run_demo,
    "doctor": doctor_command.examine,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(logs_command.app, name="logs")


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
