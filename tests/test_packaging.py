"""Everything that is no Python source and is needed at run time is in the built package."""

from __future__ import annotations

import configparser
import fnmatch
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
WRITTEN_WITH_THE_SITE = ROOT / "docs" / "reference"
SHIPPED = ("tinsmith", "compiler", "passes", "targets", "tuning_logs")


def package_data() -> dict[str, list[str]]:
    """The globs of `options.package_data`, for each package."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    section = parser["options.package_data"]
    return {package: patterns.split() for package, patterns in section.items()}


def declared_patterns() -> list[str]:
    """The same relative to the repository."""
    return [
        f"{package.removeprefix('tinsmith.').replace('.', '/')}/{pattern}"
        for package, patterns in package_data().items()
        for pattern in patterns
    ]


def test_every_data_file_is_declared() -> None:
    patterns = declared_patterns()
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert {"compiler/demo/fashion_resnet.onnx", "compiler/evaluate/roofline.c"} <= set(files)
    missing = [f for f in files if not any(fnmatch.fnmatch(f, p) for p in patterns)]
    assert not missing


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py hands to setuptools, and under "" what it defines."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    monkeypatch.chdir(ROOT)
    found[""] = runpy.run_path(str(ROOT / "setup.py"))
    return found


def test_everything_is_installed_inside_one_package(declared: dict[str, Any]) -> None:
    """A user's own `targets.py` must not come in between."""
    assert {package.partition(".")[0] for package in declared["packages"]} == {"tinsmith"}
    folders = {folder: package for package, folder in declared["package_dir"].items()}
    sources = {
        path.relative_to(ROOT).parent.parts
        for room in SHIPPED
        for path in (ROOT / room).rglob("*.py")
    }
    expected = {".".join((folders[room], *inside)) for room, *inside in sources}
    assert set(declared["packages"]) == expected
    assert set(package_data()) <= expected


def test_every_declared_pattern_finds_a_file() -> None:
    for pattern in declared_patterns():
        assert list(ROOT.glob(pattern)), pattern


def test_the_source_archive_has_everything(tmp_path: Path) -> None:
    """Tests, documents, examples and what builds it, and nothing that was made on the way."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    listed = (tmp_path / "tinsmith.egg-info" / "SOURCES.txt").read_text().splitlines()
    sources = {name for name in listed if ".egg-info" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in (*SHIPPED, "benchmarks", "docs", "examples", "runtime", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path.suffix not in (".pyc", ".lock")
        and "__pycache__" not in path.parts
        and path.parent.suffix != ".egg-info"
    }
    assert expected <= sources
    others = sources - expected
    assert others == {
        ".ci/run", ".gitignore", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile",
        "README.md", "mkdocs.yml", "pyproject.toml", "ruff.toml", "setup.cfg", "setup.py",
    }  # fmt: skip


@pytest.mark.parametrize("document", sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "compiler/**/*.md", "tuning_logs/**/*.md")
    for path in ROOT.glob(pattern)
))  # fmt: skip
def test_links_of_documents_lead_somewhere(document: str, declared: dict[str, Any]) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    for _, target in declared[""]["LOCAL_LINK"].findall(text):
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve()
        if found.is_relative_to(WRITTEN_WITH_THE_SITE) and document.startswith("docs/"):
            continue  # `mkdocs build --strict` holds these: tests/test_documents.py
        assert found.is_relative_to(ROOT) and found.exists(), (document, target)
        assert not anchor or anchor in headings(found), (document, target)
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings(path), (document, anchor)


def test_file_names_become_code_where_there_are_no_files(declared: dict[str, Any]) -> None:
    told = declared[""]["for_an_index"]("[docs/a.md](docs/a.md), [b](docs/b.md), [c](https://c)")
    assert told == "`docs/a.md`, b (`docs/b.md`), [c](https://c)"


def test_the_page_of_a_package_index_has_no_links_to_files_beside_it(
    declared: dict[str, Any],
) -> None:
    page = declared["long_description"]
    assert declared["long_description_content_type"] == "text/markdown"
    assert not declared[""]["LOCAL_LINK"].search(page)
    assert "module format (`docs/module-format.md`)" in page and "](https://" in page


def headings(path: Path) -> set[str]:
    """The anchors of a document, as pages of Markdown name them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
