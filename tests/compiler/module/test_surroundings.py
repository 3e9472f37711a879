"""Folders with odd names, and a user without a home: writing and loading a module there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_networks import lowered
from tvm.relax import const, op

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write import linker
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module


def _biased(bias: float) -> LoweredModel:
    """x + bias, of four floats."""
    value = const(np.full(4, bias, "float32"))
    return lowered(lambda x: op.add(x, value), (((4,), "float32"),))


def test_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules that differ in their embedded weights alone, in all forms."""
    monkeypatch.chdir(tmp_path)
    names = ["a,b", 'it\'s "so" 100%d \\n ünï-名 $HOME;#']
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        folder = Path(name) / f"-o,{name}"
        path = write_module(_biased(number), folder, embed_weights=True).path
        with load(path) as module:
            assert module.run([np.ones(4, "float32")])[0].tolist() == [1.0 + number] * 4
        np.ones(4, "float32").tofile(tmp_path / "x")
        command = [path.absolute() / "tinsmith-run", "run", "-o", f"{number}_", "x"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        assert np.load(tmp_path / f"{number}_y0.npy").tolist() == [1.0 + number] * 4


@pytest.mark.parametrize("home", [None, "/dev/null", "/nowhere", "relative"])
def test_where_zig_keeps_its_files(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pathlib.Path.home", _no_home)
    else:
        monkeypatch.setenv("HOME", home)
    if os.geteuid() == 0 and home == "/nowhere":
        pytest.skip("root may make it")
    cache = linker.tool_cache()
    assert cache.is_dir() and os.access(cache, os.W_OK)
    cache_of_user = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_of_user))
    assert linker.tool_cache() == cache_of_user / "zig"


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_cache_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = linker.tool_cache()
    assert own.parent == tmp_path
    own.chmod(0o777)
    with pytest.raises(PermissionError):
        linker.tool_cache()


def test_the_linker_has_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "zig"
    sleeper.write_text("#!/bin/sh\nsleep 6000 & sleep 6000\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(linker, "_zig", lambda: str(sleeper))
    monkeypatch.setattr(linker, "_LIMIT_SECONDS", 0.5)
    # Both sleepers hold the pipe that is read: were one left, this would not end.
    with pytest.raises(BuildError, match=r"could not link x within 0\.5 s.*ziglang cc"):
        linker.run_zig(["cc"], "link x")


def test_the_linker_does_not_outlive_a_killed_process(tmp_path: Path) -> None:
    sleeper = tmp_path / "zig"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    sleeper.chmod(0o755)
    code = (
        "from tinsmith.compiler.module.write import linker\n"
        f"linker._zig = lambda: {str(sleeper)!r}\n"
        "linker.run_zig(['cc'], 'link')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        pid = tmp_path / "pid"
        _wait_until(lambda: pid.is_file() and pid.read_text().endswith("\n"))
        process.kill()
    _wait_until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
