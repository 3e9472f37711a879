"""The commands by name; what one is made of is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal

import typer

MARKUP: Literal["markdown"] = "markdown"
# In the order of `tinsmith --help`: a module of this package, and its function or group.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "compile": ("compile_command", "compile_model"),
    "prune": ("prune_command", "prune_model"),
    "sensitivity": ("sensitivity_command", "measure_model"),
    "tune": ("tune_command", "tune_model"),
    "run": ("run_command", "run_module"),
    "bench": ("bench_command", "bench_module"),
    "verify": ("verify_command", "verify_module"),
    "inspect": ("inspect_command", "inspect_module"),
    "pack": ("pack_command", "pack_module"),
    "targets": ("targets_command", "list_targets"),
    "demo": ("demo_command", "run_demo"),
    "doctor": ("doctor_command", "examine"),
    "logs": ("logs_command", "app"),
}


class CommandsByName(Mapping[str, Any]):
    """The commands of Click's; to ask for names imports none of them."""

    def __getitem__(self, name: str) -> Any:
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS


@cache
def _command(name: str) -> Any:
    """The command that `name` stands for; raises KeyError if there is none."""
    module, member = COMMANDS[name]
    found = getattr(import_module(f"tinsmith.compiler.cli.{module}"), member)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command
