"""Temporary files and folders of live, ended, killed and forked processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinsmith.compiler.scratch import ScratchFolder, replacing

_HOLDS = """
import os, pathlib, sys
from tinsmith.compiler.scratch import ScratchFolder, replacing

parent = pathlib.Path(sys.argv[1])
folder = ScratchFolder(parent)
(folder.path / "inner").mkdir()
with replacing(parent / "file") as stream:
    stream.write(b"half")
    stream.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process with a folder and a file under way."""
    command = [sys.executable, "-c", _HOLDS, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_live_process_keeps_its_own(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = _names(tmp_path)
    assert len(before) == 2
    with ScratchFolder(tmp_path), replacing(tmp_path / "other"):
        assert before < _names(tmp_path)
    assert _names(tmp_path) == before | {"other"}


def test_what_a_killed_process_left_goes(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(_names(tmp_path)) == 2
    with replacing(tmp_path / "other"):
        pass
    ScratchFolder(tmp_path).close()
    assert _names(tmp_path) == {"other"}


def test_nobody_elses_files_go(tmp_path: Path) -> None:
    for name in ("tinsmith-held", "tinsmith-other", "held-tinsmith-held-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "tinsmith-held-link").symlink_to("held-tinsmith-held-1")
    before = _names(tmp_path)
    ScratchFolder(tmp_path).close()
    assert _names(tmp_path) == before


def test_threads_that_make_and_remove_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for i in range(30):
            with ScratchFolder(tmp_path) as folder, replacing(tmp_path / f"{number}") as stream:
                (folder / "mine").write_bytes(b"x")
                stream.write(b"%d" % i)
                assert os.listdir(folder) == ["mine"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert _names(tmp_path) == {str(number) for number in range(8)}


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), replacing(path) as stream:
        stream.write(b"new")
        raise ValueError("stop")
    assert (_names(tmp_path), path.read_bytes()) == ({"file"}, b"old")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"), replacing(path):
            pass
    assert _names(tmp_path) == {"pipe"}


def test_a_file_behind_a_link_is_replaced_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    with replacing(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    (tmp_path / "plain").write_bytes(b"")
    modes = [path.stat().st_mode for path in (tmp_path / "there" / "file", tmp_path / "plain")]
    assert modes[0] == modes[1]


def test_a_forked_child_leaves_the_folder(tmp_path: Path) -> None:
    folder = ScratchFolder(tmp_path)
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.path.is_dir()
    folder.close()
    assert not folder.path.exists()
