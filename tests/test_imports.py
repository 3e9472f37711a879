"""Imports run one way, targets <- passes <- compiler, and loading a module needs no TVM."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "targets": {"targets"},
    "passes": {"targets", "passes"},
    "compiler": {"targets", "passes", "compiler", "tuning_logs"},
}
ROOMS = {"compiler", "passes", "targets", "tuning_logs"}
SOURCES = sorted(
    path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")
)
OTHERS = sorted(
    path.relative_to(ROOT)
    for folder in ("tinsmith", "runtime", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def imported_modules(source: str, filename: str = "<text>") -> set[str]:
    """Names of every import in `source`, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source, filename)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("<relative>")
            elif node.module == "tinsmith":
                names.update(f"tinsmith.{alias.name}" for alias in node.names)
            elif node.module:
                names.add(node.module)
    return names


def top_level(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def rooms(modules: set[str]) -> set[str]:
    """The second word of what is imported from tinsmith; of its public face, the name."""
    return {name.split(".")[1] for name in modules if name.startswith("tinsmith.")}


def test_the_check_sees_every_form_of_import() -> None:
    source = (
        "def f():\n    import tinsmith.compiler.api as a\n    from tinsmith.passes import graph\n"
        "from . import b\nfrom tinsmith import targets\nimport numpy\n"
    )
    found = imported_modules(source)
    assert rooms(found) == {"compiler", "passes", "targets"}
    assert top_level(found) == {"tinsmith", "<relative>", "numpy"}


def test_the_three_packages_have_sources() -> None:
    assert {path.parts[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    package = path.parts[0]
    found = imported_modules((ROOT / path).read_text(), str(path))
    foreign = rooms(found) - MAY_IMPORT[package]
    assert not foreign, f"{package} must not import {', '.join(sorted(foreign))}"
    assert "tinsmith" not in found, "the public face is for users; it imports the compiler"
    assert "<relative>" not in found, "imports are absolute, so that the direction can be read"
    assert not top_level(found) & {"tests", "benchmarks", "examples"}


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=str)
def test_nothing_is_imported_from_outside_the_one_package(path: Path) -> None:
    """`import targets` may be a user's own file."""
    assert not top_level(imported_modules((ROOT / path).read_text(), str(path))) & ROOMS


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[0] != "targets"], ids=str)
def test_only_targets_know_a_family(path: Path) -> None:
    """They ask `targets.registry` for the backend of a machine, `targets.operators` for kernels."""
    found = imported_modules((ROOT / path).read_text(), str(path))
    families = tuple(f"tinsmith.targets.{name}" for name in ("cpu", "x86", "arm"))
    assert not [name for name in found if name.startswith(families)]


ONNX = {"onnx", "onnx_ir", "onnxscript"}
# Where ONNX is at home, and who else has to do with it, each for its reason.
ONNX_ROOMS = (Path("compiler/frontends/onnx"), Path("compiler/export"))
USE_ONNX = {
    "compiler/evaluate/oracle.py": "asks other implementations of ONNX",
    "compiler/module/onnx_loop.py": "loops of modules that are evaluated node by node",
    "compiler/module/vm_functions.py": "nodes without a shape, which modules evaluate",
    "compiler/module/vm_rearrangement.py": "the same, in numpy",
}
# What callers may know of front ends. Whoever writes checkpoints knows these, too.
FRONTENDS = "tinsmith.compiler.frontends"
FRONTENDS_FACE = {
    f"{FRONTENDS}.{name}" for name in ("frontend", "imported", "origins", "registry")
} | {FRONTENDS}
WRITE_CHECKPOINTS = {Path("compiler/cli/prune_command.py")}


def is_at_home(path: Path) -> bool:
    return any(room in path.parents for room in ONNX_ROOMS)


@pytest.mark.parametrize("path", [p for p in SOURCES if not is_at_home(p)], ids=str)
def test_onnx_stays_with_its_front_end(path: Path) -> None:
    """No type of ONNX runs through the compiler, not even for a type checker."""
    found = top_level(imported_modules((ROOT / path).read_text(), str(path))) & ONNX
    assert bool(found) == (str(path) in USE_ONNX)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parts[:2] != ("compiler", "frontends")], ids=str
)
def test_callers_name_no_format(path: Path) -> None:
    """They ask `frontends.registry` for the front end of a model."""
    if path in WRITE_CHECKPOINTS:
        return
    found = imported_modules((ROOT / path).read_text(), str(path))
    assert not {name for name in found if name.startswith(FRONTENDS)} - FRONTENDS_FACE


INSTRUCTION_SETS = re.compile(
    r"amx|avx|vnni|\bsse|neon|asimd|i8mm|dotprod|\btiles?\.c", re.IGNORECASE
)


def test_the_runtime_names_no_instruction_set() -> None:
    """What a family's modules need in C comes from `Backend.machine_check`."""
    sources = sorted((ROOT / "compiler").rglob("*.[chS]"))
    assert sources
    assert not [path.name for path in sources if INSTRUCTION_SETS.search(path.read_text())]


def test_only_targets_spell_an_instruction_set() -> None:
    """In text that a program uses, but for what `doctor` looks at a machine for."""
    found = {
        str(path): spelled
        for path in SOURCES
        if path.parts[0] != "targets" and not path.name.startswith("doctor")
        if (spelled := spelled_instruction_sets((ROOT / path).read_text()))
    }
    assert not found


def spelled_instruction_sets(source: str) -> list[str]:
    """Strings of a program, but for its documentation, that name an instruction set."""
    tree = ast.parse(source)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in told and INSTRUCTION_SETS.search(node.value)
    ]


def test_the_check_tells_text_from_documentation() -> None:
    assert spelled_instruction_sets('"""AMX."""\nx = "amx_tile" in features') == ["amx_tile"]


def imports_at_once(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that are imported with a file, not later inside a function."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(), str(path)).body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module)
    return {name for name in found if name in modules and modules[name] != path}


def test_no_modules_import_each_other() -> None:
    modules = {
        ".".join(("tinsmith", *path.with_suffix("").parts)).removesuffix(".__init__"): path
        for path in SOURCES
    }
    # A package that is imported for one of its modules imports nothing by itself.
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    graph = {
        name: imports_at_once(path, modules) - packages
        for name, path in modules.items()
        if name not in packages
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest puts their folders on the path: of two with one name it imports one, and stops."""
    names = [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if path.name not in ("conftest.py", "__init__.py", "__main__.py")
    ]
    assert sorted(names) == sorted(set(names))


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


def test_a_float_model_is_compiled_without_what_quantising_pruning_and_tuning_need(
    small_model_file: Path, tmp_path: Path
) -> None:
    code = f"""
import sys, tinsmith
options = {{"static_library": False, "runner": False}}
tinsmith.compile_to({str(small_model_file)!r}, {str(tmp_path / "module")!r}, **options)
print([m for m in ("scipy", "xgboost", "torch") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
