"""What the documents show is so: commands parse, code uses public names, the site builds."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.cli.commands import COMMANDS, CommandsByName

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "adr"),
]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def shown_commands(text: str) -> list[list[str]]:
    """The words of each `tinsmith ...` that stands in a block of code."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    commands = (re.match(r"(?:    |\$ |    \$ )(?:\$ )?tinsmith (.*)", line) for line in lines)
    return [shlex.split(found[1], comments=True) for found in commands if found]


def parse(words: list[str]) -> None:
    """Parse a command line as `tinsmith` would, and run nothing. Raises a usage error."""
    name, *arguments = words
    if name == "--version":
        return
    command = CommandsByName()[name]
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_parse(page: Path) -> None:
    for words in shown_commands(page.read_text(encoding="utf-8")):
        parse(words)


def test_the_guide_shows_every_command() -> None:
    shown = {words[0] for page in PAGES for words in shown_commands(page.read_text("utf-8"))}
    assert shown >= set(COMMANDS) - {"demo", "doctor", "targets"}, "these three take no options"


def test_the_check_sees_wrong_options() -> None:
    (words,) = shown_commands("$ tinsmith compile a.onnx \\\n    --frob 3 -o out/\n")
    assert words == ["compile", "a.onnx", "--frob", "3", "-o", "out/"]
    with pytest.raises(Exception, match="--frob"):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_is_shown_uses_public_names(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "tinsmith":
                    assert node.attr in tinsmith.__all__, node.attr
                if node.value.id == "module":
                    assert hasattr(tinsmith.Module, node.attr), node.attr


# Mistakes that need no model, by command line; F is a file of PyTorch.
MISTAKES = (
    "compile nothing.onnx -o new",
    "compile F -o new",
    "compile model.onnx -o new --target rpi9",
    "compile model.onnx -o new --target cuda",
    "compile model.onnx -o new --quantize int8",
    "compile model.onnx -o new --min-agreement 99",
    "compile model.onnx -o full",
    "run full",
    "run model.onnx",
    "verify full --model model.onnx",
)


@pytest.mark.parametrize("line", MISTAKES)
def test_troubleshooting_knows_the_text(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text("utf-8")
    titles = re.findall(r"^(.*)\n: ", page, re.MULTILINE)
    texts = [text for title in titles for text in re.findall(r"`([^`]+)`", title)]
    (tmp_path / "model.onnx").write_text("not looked into")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, line.replace("F", "model.pt").split()).stderr
    # Names of files differ; what follows them is what a reader searches for.
    known = [text.split(": ", 1)[-1].removesuffix("...").strip() for text in texts]
    assert any(text in told for text in known if len(text) >= 12), told


@cache
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "reference_pages.py"))


@cache
def generated() -> dict[str, str]:
    """The pages of the site that are not in the repository."""
    return reference()["pages"]()  # type: ignore[no-any-return]


def test_the_reference_has_every_command_and_option() -> None:
    for name in COMMANDS:
        page = generated()[f"reference/commands/{name}.md"]
        command = CommandsByName()[name]
        commands = getattr(command, "commands", {"": command})
        for below, one in commands.items():
            assert f"tinsmith {name} {below}".strip() in page
            for parameter in one.params:
                for option in (o for o in parameter.opts if o.startswith("--")):
                    assert option == "--help" or f"`{option}" in page, (name, option)
        assert f"({name}.md)" in generated()["reference/commands/index.md"]


def test_the_reference_has_every_public_name() -> None:
    page = generated()["reference/python.md"]
    for name in tinsmith.__all__:
        assert f"\n### {name}\n" in page or f"\n| `{name}` | " in page, name
    assert "#### Module.profile\n" in page and "| `PassError` | 70 |" in page
    assert "def " not in page and " -> None" not in page


def test_parameters_of_docstrings_become_lists() -> None:
    told = "Do it.\n\na, b: two\n    numbers.\nNot: a parameter.\n"
    assert reference()["markdown_of"](told, {"a", "b"}) == (
        "Do it.\n\n- `a`, `b`: two\n    numbers.\nNot: a parameter."
    )


def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    """Strictly: every link and anchor leads somewhere, and every page is in the navigation."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text("utf-8")
             for path in (tmp_path / "site").rglob("*.html")}  # fmt: skip
    assert {"index.html", "architecture.html", "reference/commands/logs.html"} <= set(pages)
    assert "<svg" in (tmp_path / "site" / "architecture.svg").read_text("utf-8")
    for name, page in pages.items():
        fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\" >]*)", page)
        assert not fetched, name
