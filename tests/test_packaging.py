"""Everything that is no Python source and is needed at run time is in the built package."""

from __future__ import annotations

import configparser
import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("compiler", "passes", "targets", "tuning_logs")


def declared_patterns() -> list[str]:
    """Globs relative to the repository, from `options.package_data`."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in parser["options.package_data"].items()
        for pattern in patterns.split()
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


def test_every_package_with_data_is_a_package() -> None:
    """`find:` leaves folders without `__init__.py` out, and their data with them."""
    for pattern in declared_patterns():
        folder = ROOT / pattern.split("/*", 1)[0].removesuffix("/runtime")
        assert (folder / "__init__.py").is_file(), folder


def test_every_declared_pattern_finds_a_file() -> None:
    for pattern in declared_patterns():
        assert list(ROOT.glob(pattern)), pattern
