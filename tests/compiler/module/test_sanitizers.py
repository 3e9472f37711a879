"""The C runtime under sanitizers: `make sanitize` runs this file alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compiler.module.driver import RUNTIME_FOLDER

_COMPILER = next(filter(shutil.which, ("gcc", "clang")), None)
# ThreadSanitizer knows no threads after a fork, AddressSanitizer's own locks stay taken there.
_RUNS = [
    ("thread", "contexts", 0),
    ("address,undefined", "contexts", 0),
    ("undefined", "forks", 0),
    pytest.param("undefined", "forks", 1, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sanitizers") / "weights.bin"
    np.arange(256, dtype="float32").tofile(path)
    return path


def _build(source: Path, program: Path, sanitizers: str, *options: str) -> None:
    if _COMPILER is None:
        pytest.skip("needs gcc or clang")
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-fsanitize={sanitizers}"]
    flags += ["-fno-sanitize-recover=all", f"-I{RUNTIME_FOLDER}"]
    command = [_COMPILER, *flags, *options, str(source), "-o", str(program), "-lm", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"{_COMPILER} has no libraries for -fsanitize={sanitizers}")
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize(("sanitizers", "scenario", "mapped"), _RUNS)
def test_contexts_threads_and_forks(
    weights: Path, tmp_path: Path, sanitizers: str, scenario: str, mapped: int
) -> None:
    program = tmp_path / "check"
    source = Path(__file__).with_name("runtime_check.c")
    _build(source, program, sanitizers, f"-DMAP_WEIGHTS={mapped}")
    done = subprocess.run(
        [str(program), str(weights), scenario, os.environ.get("TINSMITH_ROUNDS", "20")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
