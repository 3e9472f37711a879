"""Children that must not outlive the process that started them."""

import os
import signal
import subprocess
import sys
import time

from tinsmith.compiler.processes import child_environment

PARENT = """
import os, signal, subprocess, sys, time
from tinsmith.compiler.processes import ending_with_this
child = subprocess.Popen(
    ending_with_this([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]),
    stdout=subprocess.PIPE,
)
child.stdout.readline()
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
time.sleep(600)
"""


def is_there(process: int) -> bool:
    """Whether a process lives; one that has ended and that nobody waits for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_a_stopped_child_ends_with_a_killed_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=child_environment(), text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert is_there(child)
        finally:
            parent.kill()
    deadline = time.monotonic() + 600
    while is_there(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = is_there(child)
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive
