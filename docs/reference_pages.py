"""The reference pages of the site, written when it is built: a hook of MkDocs.

The pages of commands come from the Typer application, the page of the Python interface from
`tinsmith.__all__`, so that neither can differ from the program. Nothing is written to docs/.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import tinsmith
from tinsmith.compiler.cli.commands import COMMANDS, CommandsByName

COMMANDS_FOLDER = "reference/commands"
PYTHON_PAGE = "reference/python.md"
_EVERY_DAY = "Options"
_LINE = 88
# What an option takes that names nothing better.
_VALUES = {int: "INTEGER", float: "NUMBER"}
# A parameter that a docstring describes: `name, other: what it means`.
_PARAMETERS = re.compile(r"(\w+(?:, \w+)*): (.*)")


def pages() -> dict[str, str]:
    """The Markdown of every generated page, by its path below docs/."""
    commands = {f"{COMMANDS_FOLDER}/{name}.md": command_page(name) for name in COMMANDS}
    return {f"{COMMANDS_FOLDER}/index.md": commands_page(), **commands, PYTHON_PAGE: python_page()}


def on_config(config: Any) -> Any:
    """Called by MkDocs: put all commands and decisions into the navigation."""
    commands = [f"{COMMANDS_FOLDER}/index.md", *(f"{COMMANDS_FOLDER}/{n}.md" for n in COMMANDS)]
    decisions = sorted(path.name for path in Path(config["docs_dir"], "adr").glob("0*.md"))
    for section in config["nav"]:
        if "Reference" in section:
            section["Reference"] = [{"Commands": commands}, *section["Reference"]]
        if "Decisions" in section:
            section["Decisions"] = ["adr/README.md", *(f"adr/{name}" for name in decisions)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs: add the pages to those that lie in docs/."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def commands_page() -> str:
    """All commands, each with the first line of its help."""
    rows = [
        f"| [`{name}`]({name}.md) | {_first_line(CommandsByName()[name].help)} |"
        for name in COMMANDS
    ]
    return "\n".join([
        "# Commands", "",
        "Every command has `--help` with an example, and `--json`, which prints one JSON document",
        "on standard output, errors included. Progress and notes go to standard error.", "",
        "| command | what it does |", "|---|---|", *rows, "",
        "| exit code | meaning |", "|---|---|",
        "| 0 | success |",
        "| 1 | a verification failed |",
        "| 2 | something that you can mend; one line on standard error says what |",
        "| 70 | a bug in Tinsmith; `--debug` prints the traceback |",
        "| 130 | interrupted |", "",
        "`tinsmith --install-completion` teaches the shell (bash, zsh, fish) commands and options.",
        "`tinsmith --version` prints the version.", "",
    ])  # fmt: skip


def command_page(name: str) -> str:
    """A command, or a group of commands, with its arguments and options."""
    command = CommandsByName()[name]
    parts = [f"# tinsmith {name}", ""]
    parts += _described(command, f"tinsmith {name}")
    for below in getattr(command, "commands", {}).values():
        told = f"tinsmith {name} {below.name}"
        parts += [f"## {told}", "", *_described(below, told)]
    return "\n".join(parts)


def _described(command: Any, told: str) -> list[str]:
    parts = [_paragraphs(command.help), ""]
    if hasattr(command, "commands"):
        return parts
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    words = [_name_of(p) if p.required else f"[{_name_of(p)}]" for p in arguments]
    parts += ["```text", " ".join([told, *words, "[OPTIONS]"]), "```", ""]
    for title, group in _groups(shown).items():
        rows = [f"| {_spelled(p)} | {_cell(p.help)}{_default(p)} |" for p in group]
        parts += [f"| {title} | |", "|---|---|", *rows, ""]
    return parts


def _groups(parameters: list[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for parameter in parameters:
        title = getattr(parameter, "rich_help_panel", None) or _EVERY_DAY
        is_argument = parameter.param_type_name == "argument"
        groups.setdefault("Arguments" if is_argument else title, []).append(parameter)
    return groups


def _name_of(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spelled(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_name_of(parameter)}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.is_flag:
        return ", ".join(f"`{name}`" for name in names)
    value = parameter.metavar or _VALUES.get(type(parameter.default), "TEXT")
    return ", ".join(f"`{name} {value}`" for name in names)


def _default(parameter: Any) -> str:
    if parameter.required:
        return " Required." if parameter.param_type_name == "option" else ""
    value = parameter.default
    if value is None or value == () or callable(value):
        return ""
    if parameter.is_flag if parameter.param_type_name == "option" else False:
        if not parameter.secondary_opts:
            return ""
        value = (parameter.opts if value else parameter.secondary_opts)[0]
    return f" Default: `{value}`." if str(value) else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _first_line(text: str) -> str:
    return _cell(text.split("\n\n")[0])


def _paragraphs(text: str) -> str:
    """Paragraphs of a command's help, each in one line, as Markdown takes them."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def python_page() -> str:
    """The public interface: functions, classes, errors."""
    found = {name: getattr(tinsmith, name) for name in tinsmith.__all__}
    errors = {n: v for n, v in found.items() if isinstance(v, type) and issubclass(v, Exception)}
    functions = {n: v for n, v in found.items() if not isinstance(v, type)}
    classes = {n: v for n, v in found.items() if isinstance(v, type) and n not in errors}
    parts = [
        "# Python", "", "`import tinsmith`. What is on this page is public; everything else may",
        "change. Names are imported on first use: loading and running a module needs neither TVM",
        "nor onnx.", "", "## Functions", "",
    ]  # fmt: skip
    for name, function in functions.items():
        parts += [f"### {name}", "", *_signature(name, function), *_documented(function)]
    parts += ["## Classes", ""]
    for name, kind in classes.items():
        constructor = [] if inspect.isabstract(kind) else _signature(name, kind)
        parts += [f"### {name}", "", *constructor, *_documented(kind)]
        for member, value in _members(kind):
            told = f"{name}.{member}"
            is_property = isinstance(value, property)
            parts += [f"#### {told}", "", *([] if is_property else _signature(member, value))]
            parts += _documented(value)
    parts += ["## Errors", "", "| error | exit code | when |", "|---|---|---|"]
    for name, error in errors.items():
        bases = [base.__name__ for base in error.__mro__[1:] if base.__name__ in errors]
        of = f" A kind of `{bases[0]}`." if bases and bases[0] != "TinsmithError" else ""
        when = _first_line(inspect.getdoc(error) or "")
        parts.append(f"| `{name}` | {error.exit_code} | {when}{of} |")
    return "\n".join([*parts, ""])


def _members(kind: type) -> list[tuple[str, Any]]:
    """Public methods and properties of a class, and how it is called, in order."""
    return [
        (name, value)
        for name, value in vars(kind).items()
        if (not name.startswith("_") or name == "__call__")
        and (inspect.isfunction(value) or isinstance(value, property))
        and value.__doc__
    ]


class _Bare:
    """An annotation that shows as it is written."""

    def __init__(self, text: Any) -> None:
        self._text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self._text


def _signature(name: str, value: Any) -> list[str]:
    signature = inspect.signature(value)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=_Bare(p.annotation))
        for p in signature.parameters.values()
        if p.name != "self"
    ]
    told = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    returned = signature.return_annotation
    is_told = not isinstance(value, type) and returned not in (inspect.Signature.empty, "None")
    ending = f" -> {_Bare(returned)}" if is_told else ""
    line = f"{name}{told}{ending}"
    if len(line) > _LINE:
        every = [str(p) for p in told.parameters.values()]
        kinds = [p.kind for p in told.parameters.values()]
        named = inspect.Parameter.KEYWORD_ONLY
        if named in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
            every.insert(kinds.index(named), "*")
        line = "\n".join([f"{name}(", *(f"    {one}," for one in every), f"){ending}"])
    return ["```python", line, "```", ""]


def _documented(value: Any) -> list[str]:
    names = set() if isinstance(value, property) else set(inspect.signature(value).parameters)
    return [markdown_of(inspect.getdoc(value) or "", names), ""]


def markdown_of(docstring: str, names: set[str]) -> str:
    """A docstring as Markdown: what it says of each of the parameters becomes an item of a list."""
    lines: list[str] = []
    within = False
    for line in docstring.splitlines():
        parameter = _PARAMETERS.fullmatch(line)
        if parameter and set(parameter[1].split(", ")) <= names:
            if not within and lines and lines[-1]:
                lines.append("")
            described = ", ".join(f"`{name}`" for name in parameter[1].split(", "))
            lines.append(f"- {described}: {parameter[2]}")
            within = True
        else:
            within = within and line.startswith("    ")
            lines.append(line)
    return "\n".join(lines)
