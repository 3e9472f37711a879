"""Everything that is no Python source and is needed at run time is in the built package."""

from __future__ import annotations

import configparser
import fnmatch
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
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


def test_everything_is_installed_inside_one_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own `targets.py` must not come in between."""
    declared: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", declared.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
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
