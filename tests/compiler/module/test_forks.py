"""A parent loads and runs a module, then forks: servers that preload do, and multiprocessing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinsmith.compiler.module.archive import pack

# Children that hang die of SIGALRM; the parent's threads run on while they are forked.
_SCRIPT = """
import os, signal, sys, threading
import numpy as np
import tinsmith

folder, busy = sys.argv[1], sys.argv[2] == "busy"
module = tinsmith.load(folder, threads=2)
x = [np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype("float32")]
expected = [result.copy() for result in module.run(x)]
usable = os.sched_getaffinity(0)
own = module.context()
over = threading.Event()

def run():
    while not over.is_set():
        module.run(x)

def load_and_close():
    while not over.is_set():
        tinsmith.load(folder, threads=3).close()

def right(ran):
    return all(map(np.array_equal, ran.run(x), expected))

def child(number):
    signal.alarm(300)
    yield right(own)
    module.threads = 1 + number % 3
    yield right(module) and module.threads == 1 + number % 3
    with tinsmith.load(folder, threads=3) as again:
        yield right(again) and again.threads == 3 and module.threads == 1 + number % 3
    yield right(module)
    yield os.sched_getaffinity(0) == usable
    module.close()
    with tinsmith.load(folder, threads=2) as again:
        yield right(again)

threads = [threading.Thread(target=target) for target in (run, run, load_and_close) if busy]
for thread in threads:
    thread.start()
pids = []
for number in range(12):
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = list(child(number)).count(False)
        finally:
            os._exit(status)
    pids.append(pid)
    if number % 4 == 3:
        ended = [os.waitpid(pid, 0)[1] for pid in pids]
        assert not any(ended), ended
        pids.clear()
over.set()
for thread in threads:
    thread.join()
assert right(module)
print("ok")
"""

_POOL = """
import multiprocessing, sys
import numpy as np
import tinsmith

module = tinsmith.load(sys.argv[1], threads=2)
x = np.ones((1, 3, 16, 16), "float32")
expected = module.run([x])[0]

def work(number):
    return np.array_equal(module.run([x])[0], expected)

with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(pool.map_async(work, range(30)).get(timeout=300))
print("ok")
"""

_ARCHIVE = """
import os, sys
import tinsmith

module = tinsmith.load(sys.argv[1])
pid = os.fork()
if pid == 0:
    sys.exit()  # as servers end their workers: with all that is registered for the exit
os.waitpid(pid, 0)
assert module.golden() is not None
print("ok")
"""


def _run(script: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stdout + done.stderr


@pytest.mark.parametrize("parent", ["idle", "busy"])
def test_forked_children_do_all_that_a_module_can(network_folder: Path, parent: str) -> None:
    _run(_SCRIPT, network_folder, parent)


def test_a_pool_of_processes(network_folder: Path) -> None:
    _run(_POOL, network_folder)


def test_a_child_leaves_the_files_of_its_parent(network_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(network_folder, tmp_path / "module")
    pack(folder, tmp_path / "module.tar.zst", level=1)
    _run(_ARCHIVE, tmp_path / "module.tar.zst")
