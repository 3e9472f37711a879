"""Writers that are killed in the middle, and disks that fill up: the old or the new, complete."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, lowered, network_model, random_inputs
from tvm.relax import op

from tinsmith.compiler.errors import ArtifactError, BuildError, TinsmithError
from tinsmith.compiler.module.archive import pack
from tinsmith.compiler.module.loader import load, verify_files
from tinsmith.compiler.module.manifest import update_measured
from tinsmith.compiler.module.write.writer import write_module

# For each line that it reads, forks a child that writes a module and its archive again and again,
# so that it is killed while it does, and tells its number. Importing takes seconds: once will do.
_WRITES = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
from small_networks import network_model
from tinsmith.compiler.module.archive import pack
from tinsmith.compiler.module.manifest import update_measured
from tinsmith.compiler.module.write.writer import write_module

folder = pathlib.Path(sys.argv[1])

def write():
    while True:
        write_module(network_model(), folder / "m", forms=("shared",), embed_weights=False)
        for _ in range(20):
            pack(folder / "m", folder / "m.tar.zst")
            update_measured(folder / "m", accuracy={"top1": 0.5})

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        write()
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def _whole(folder: Path) -> None:
    """What is there is complete, and computes."""
    if (folder / "m").exists():
        verify_files(folder / "m")
        with load(folder / "m", threads=1) as module:
            module.run(random_inputs(NETWORK_INPUT))
    if (folder / "m.tar.zst").exists():
        verify_files(folder / "m.tar.zst")


@contextmanager
def _writer(folder: Path) -> Iterator[Callable[[float], None]]:
    """A function that has a writer start, and kills it after so many seconds."""
    command = [sys.executable, "-c", _WRITES, str(folder), str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def kill(seconds: float) -> None:
            stdin.write("go\n")
            stdin.flush()
            pid = int(stdout.readline())
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
            assert stdout.readline() == "dead\n"

        assert stdout.readline() == "ready\n"
        yield kill
        stdin.close()


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_writers(tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    chance = random.Random(0)
    with _writer(tmp_path / "out") as kill:
        for _ in range(kills):
            kill(chance.uniform(0, 2))
            _whole(tmp_path / "out")
    write_module(network_model(), tmp_path / "out" / "m", forms=("shared",))
    pack(tmp_path / "out" / "m", tmp_path / "out" / "m.tar.zst")
    _whole(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m", "m.tar.zst"]
    assert not [path.name for path in (tmp_path / "out" / "m").iterdir() if path.name[0] == "."]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which `mount` may make smaller and larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(mount, check=False).returncode
    ):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _leave(folder: Path, kibibytes: int) -> None:
    """Fill the disk until so much is free."""
    (folder / "filler").unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free // 1024
    (folder / "filler").write_bytes(bytes(max(0, free - kibibytes) * 1024))


@pytest.mark.slow
def test_disks_that_fill_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not fit is one line, and what was there stays; scratch goes."""
    x = np.ones(4, "float32")
    module = small_disk / "m"
    write_module(lowered(lambda x: op.add(x, x), (((4,), "float32"),)), module, forms=("shared",))
    pack(module, small_disk / "m.tar.zst")
    squared = lowered(lambda x: op.multiply(x, x), (((4,), "float32"),))
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))

    def square() -> None:
        write_module(squared, module)

    def archive() -> None:
        pack(module, small_disk / "m.tar.zst")

    def measure() -> None:
        update_measured(module, pruning={"text": "x" * 50_000})

    def unpack() -> None:
        load(small_disk / "m.tar.zst").close()

    failures = 0
    for kibibytes in (0, 4, 20, 60, 100, 160, 220, 300):
        for attempt in (unpack, measure, archive, square):
            _leave(small_disk, kibibytes)
            try:
                attempt()
            except (TinsmithError, OSError) as error:
                failures += 1
                if not isinstance(error, BuildError | ArtifactError):
                    assert isinstance(error, OSError) and attempt is measure
                assert len(str(error).splitlines()) == 1
                (small_disk / "filler").unlink()
                verify_files(module)
                verify_files(small_disk / "m.tar.zst")
                with load(module) as loaded:
                    assert loaded.run([x * 3])[0].tolist() in ([6.0] * 4, [9.0] * 4)
            names = {path.name for path in small_disk.iterdir()}
            assert names <= {"m", "m.tar.zst", "filler"}
    assert failures > 8
