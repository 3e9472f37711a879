"""The packages import one way, targets <- passes <- compiler, and loading a module needs no TVM."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "targets": {"targets"},
    "passes": {"targets", "passes"},
    "compiler": {"targets", "passes", "compiler"},
}
SOURCES = sorted(
    path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")
)


def imported_packages(source: str, filename: str = "<text>") -> set[str]:
    """Top-level names of every import in `source`, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source, filename)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("<relative>")
            elif node.module:
                names.add(node.module.split(".")[0])
    return names


def test_the_check_sees_every_form_of_import() -> None:
    source = "def f():\n    import tinsmith.api as a\n    from tinsmith.passes import graph\nfrom . import b\n"
    assert imported_packages(source) == {"compiler", "passes", "<relative>"}


def test_the_three_packages_have_sources() -> None:
    assert {path.parts[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    package = path.parts[0]
    found = imported_packages((ROOT / path).read_text(), str(path))
    foreign = (found & set(MAY_IMPORT)) - MAY_IMPORT[package]
    assert not foreign, f"{package} must not import {', '.join(sorted(foreign))}"
    assert "<relative>" not in found, "imports are absolute, so that the direction can be read"
    assert not found & {"tests", "benchmarks", "examples"}


@pytest.mark.parametrize(
    "statement",
    [
        "import tinsmith; tinsmith.load; tinsmith.CompileConfig; tinsmith.TinsmithError",
        "from tinsmith.compiler.module.loader import load",
        "from tinsmith.compiler.cli import main",
        "from tinsmith.targets.registry import get_target",
    ],
)
def test_needs_neither_tvm_nor_the_extras(statement: str) -> None:
    """In a fresh interpreter, because this one has long imported everything."""
    heavy = ("tvm", "torch", "onnxruntime", "openvino", "onnx", "xgboost")
    code = f"{statement}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
