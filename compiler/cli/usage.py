"""Mistakes in how a command is called: one line, or one JSON document, like every other error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.commands import CommandsByName

# The parser of options belongs to Click, which newer versions of Typer bundle.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_WITHOUT_ARGUMENTS = "NoArgsIsHelpError"


class Commands(TyperGroup):
    """The group of all commands, each of which is imported when it is asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Mapping[str, Any] = CommandsByName()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order in which `--help` shows them."""
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, and end the process with its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        given = sys.argv[1:] if args is None else args
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except _UsageError as error:
            code = _told(error, "--json" in given)
        except typer.Abort:
            code = output.INTERRUPTED_CODE
        sys.exit(code if isinstance(code, int) else 0)


def _told(error: Any, as_json: bool) -> int:
    context = error.ctx
    if type(error).__name__ == _WITHOUT_ARGUMENTS:
        error.show()
        return int(error.exit_code)
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    command = " ".join(["tinsmith", *names, "--help"])
    message = error.format_message().rstrip(".")
    return output.refuse(
        f"{message} See {command}" if message.endswith("?") else f"{message}; see {command}",
        as_json,
    )
