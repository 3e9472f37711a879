"""`tinsmith-runtime`: what its wheel holds is enough to run, verify and profile modules.

The tests by default build the wheel's content without pip and run it beside numpy, blake3 and
msgspec alone; the slow one installs the wheel in an empty environment.
"""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import setuptools

from tinsmith.compiler.module.loader import folder_of, load

ROOT = Path(__file__).resolve().parents[3]
DEPENDENCIES = ("numpy", "numpy.libs", "blake3", "msgspec")
MEGABYTE = 10**6
# What the wheel leaves to the compiler, by who asks for it: each is told what to install.
OF_THE_COMPILER = {
    "compiler/evaluate/kernels.py": {"tinsmith.compiler.evaluate.roofline"},
    "compiler/evaluate/verify.py": {
        "tinsmith.compiler.evaluate.original", "tinsmith.compiler.evaluate.reference",
    },
}  # fmt: skip
USE = """
import tinsmith
from pathlib import Path
from tinsmith.compiler.evaluate.verify import verify
with tinsmith.load(MODULE, threads=2) as module:
    golden = module.golden()
    assert len(module.run(golden.inputs)) == len(module.outputs)
    assert {step.kernel for step in module.profile(golden.inputs)} == set(module.manifest.steps)
assert verify(Path(MODULE)).agrees
"""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What runtime/setup.py defines."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "runtime" / "setup.py"))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel of the runtime puts into an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build_py",
         "--build-lib", folder],
        cwd=ROOT / "runtime", check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runtime's dependencies, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("dependencies")
    places = [Path(np.__file__).parent.parent, Path(msgspec.__file__).parent.parent]
    for name in DEPENDENCIES:
        found = next((place / name for place in places if (place / name).exists()), None)
        if found is not None:  # numpy.libs is not there on every system
            (folder / name).symlink_to(found)
    return folder


def isolated(code: str, *folders: Path, **names: object) -> str:
    """What a Python prints that sees its own library and `folders`, as site-packages are."""
    begin = ["import site", *(f"site.addsitedir({str(folder)!r})" for folder in folders)]
    given = [f"{name} = {value!r}" for name, value in names.items()]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "\n".join([*begin, *given, code])],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_runs_without_the_compiler(
    content: Path, dependencies: Path, network_folder: Path
) -> None:
    heard = "import sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    found = isolated(USE + heard, content, dependencies, MODULE=str(network_folder))
    loaded = set(ast.literal_eval(found)) - sys.stdlib_module_names
    assert loaded <= {"tinsmith", "numpy", "blake3", "msgspec", "__main__", "__mp_main__"}


def test_running_imports_nothing_heavy_where_it_is_installed(network_folder: Path) -> None:
    heavy = ("tvm", "tvm_ffi", "onnx", "scipy", "xgboost", "typer", "rich", "zstandard")
    code = f"MODULE = {str(network_folder)!r}\n{USE}"
    code += f"import sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_the_compiler_offers_is_refused_in_one_line(content: Path, dependencies: Path) -> None:
    code = """
import tinsmith
for name in tinsmith.__all__:
    try:
        getattr(tinsmith, name)
    except ImportError as error:
        print(name, error)
"""
    told = dict(line.split(" ", 1) for line in isolated(code, content, dependencies).splitlines())
    assert {"compile", "compile_to", "tune", "CompileReport"} <= set(told)
    assert not {"load", "pack", "Module", "TinsmithError", "TensorEntry"} & set(told)
    assert all("pip install tinsmith" in line for line in told.values())


def test_without_pth_files_the_package_finds_it(
    content: Path, dependencies: Path, network_folder: Path
) -> None:
    code = f"import sys; sys.path += [{str(content)!r}, {str(dependencies)!r}]\n"
    code += "import tinsmith_runtime; print(tinsmith_runtime.load(MODULE).manifest.name)"
    assert isolated(code, MODULE=str(network_folder)) == "small\n"


def test_where_the_compiler_is_installed_that_is_imported(
    content: Path, dependencies: Path, tmp_path: Path
) -> None:
    """In any order of installation: no file of one is a file of the other."""
    whole = tmp_path / "tinsmith"
    whole.mkdir()
    for name, target in (("__init__.py", "tinsmith/__init__.py"), ("compiler", "compiler"),
                         ("passes", "passes"), ("targets", "targets")):  # fmt: skip
        (whole / name).symlink_to(ROOT / target)
    for path in content.iterdir():
        (tmp_path / path.name).symlink_to(path)
    code = """
import tinsmith, tinsmith_runtime
print(tinsmith.__file__, tinsmith_runtime.load is tinsmith.load)
"""
    file, same = isolated(code, tmp_path, dependencies).split()
    assert Path(file).parent == whole and same == "True"


def test_archives_and_vm_modules_say_what_they_need(
    content: Path, dependencies: Path, network_folder: Path
) -> None:
    code = """
import tinsmith
for path in PATHS:
    try:
        tinsmith.load(path)
    except tinsmith.ArtifactError as error:
        print(error)
"""
    archive = ROOT / "tests/compiler/module/formats/format_1_vm.tar.zst"
    with folder_of(archive) as folder:
        told = isolated(code, content, dependencies, PATHS=[str(archive), str(folder)])
    first, second = told.splitlines()
    assert "tinsmith-runtime[archive]" in first
    assert "tinsmith-runtime[vm]" in second


def test_every_import_of_the_wheel_is_in_it(content: Path, declared: dict[str, Any]) -> None:
    home = content / "tinsmith_runtime" / "packages"
    assert sorted(path.name for path in home.iterdir()) == ["tinsmith"]
    for path in home.rglob("*.py"):
        place = path.relative_to(home / "tinsmith").as_posix()
        wanted = imports_of(path) - OF_THE_COMPILER.get(place, set())
        missing = {name for name in wanted if not is_there(home, name)}
        if place == "__init__.py":
            continue  # the public face: names of the compiler are refused
        assert not missing, (place, missing)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports when it runs, also inside functions."""
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return {
        str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tinsmith")
        if id(node) not in typing
    }


def is_there(home: Path, module: str) -> bool:
    path = home.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_the_wheel_is_small(content: Path) -> None:
    sizes = [path.stat().st_size for path in content.rglob("*") if path.suffix != ".pyc"]
    assert sum(sizes) < MEGABYTE


def command(content: Path, dependencies: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    begin = f"import sys; sys.path += [{str(content)!r}, {str(dependencies)!r}]; "
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", begin + "import tinsmith_runtime as r; r.main()",
         *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command(
    content: Path, dependencies: Path, network_folder: Path, tmp_path: Path
) -> None:
    with load(network_folder) as module:
        golden = module.golden()
        assert golden is not None
        (name,) = (tensor.name for tensor in module.inputs)
    np.save(tmp_path / "x.npy", golden.inputs[0])
    out = tmp_path / "y.npz"
    run = command(content, dependencies, "run", str(network_folder), "--json",
                  "-i", f"{name}={tmp_path / 'x.npy'}", "-o", str(out))  # fmt: skip
    assert run.returncode == 0, run.stderr
    with np.load(out) as written:
        for found, expected in zip(written.values(), golden.outputs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert set(json.loads(run.stdout)["outputs"]) == {t.name for t in module.outputs}

    for task in ("verify", "bench", "inspect"):
        done = command(content, dependencies, task, str(network_folder), "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        plain = command(content, dependencies, task, str(network_folder), "--threads", "1")
        assert plain.returncode == 0 and plain.stdout, plain.stderr
        if task == "inspect":
            assert document["seconds"] > 0 and document["roofline"] is None
            assert len(document["kernels"]) == len(module.manifest.kernels)
        if task == "bench":
            assert document["best_ms"] <= document["median_ms"] <= document["p95_ms"]

    wrong = command(content, dependencies, "verify", str(tmp_path), "--json")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["type"] == "ArtifactError"
    assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_wheel_alone_in_an_empty_environment(network_folder: Path, tmp_path: Path) -> None:
    """Needs an index of packages."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    before = installed_bytes(environment)
    subprocess.run(
        [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT / "runtime"],
        check=True,
    )
    (wheel,) = tmp_path.glob("tinsmith_runtime-*.whl")
    assert wheel.stat().st_size < MEGABYTE
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", wheel], check=True)
    assert installed_bytes(environment) - before < 60 * MEGABYTE
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    code = f"MODULE = {str(network_folder)!r}\n{USE}"
    subprocess.run([python, "-B", "-c", code], check=True, cwd=tmp_path, env=clean)
    script = environment / "bin" / "tinsmith-runtime"
    subprocess.run([script, "verify", network_folder], check=True, cwd=tmp_path, env=clean)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "tinsmith-runtime"], check=True)
    assert not list(environment.rglob("tinsmith*"))


def installed_bytes(environment: Path) -> int:
    return sum(path.stat().st_size for path in environment.rglob("*") if path.is_file()
               and path.suffix != ".pyc" and not path.is_symlink())  # fmt: skip
