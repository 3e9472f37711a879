"""Child processes: what they are given, what they died of, what a forked one leaves alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tinsmith.compiler import attended

_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1
# Those of `lock_that_forks_open`.
_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports what this process can import, with `more` in it."""
    path = os.pathsep.join(part or "." for part in sys.path)
    return os.environ | {"PYTHONPATH": path} | more


def ending_with_this(command: Sequence[str | Path]) -> list[str]:
    """A command that runs `command`, and is killed when the thread that starts it ends.

    It is killed whatever it does: while it imports, while it is stopped (SIGSTOP), while it does
    not look whether its standard input has ended.
    """
    wrapper = [sys.executable, "-I", "-S", attended.__file__, str(os.getpid())]
    return [*wrapper, *map(str, command)]


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code; a negative one is a signal, as in `subprocess`."""
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it, of `parent`, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def lock_that_forks_open(reentrant: bool = False) -> AbstractContextManager[Any]:
    """A lock that is open in a forked child, whichever of the parent's threads held it."""
    lock: Any = threading.RLock() if reentrant else threading.Lock()
    _locks.add(lock)
    return lock


def _open_locks() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # as the standard library does with its own locks


os.register_at_fork(after_in_child=_open_locks)


def at_end(
    owner: object, action: Callable[..., object], *arguments: object
) -> Callable[[], object]:
    """Do `action(*arguments)` when `owner` is forgotten, or at exit; a forked child never does.

    The result does it at once, and only once.
    """
    return weakref.finalize(owner, _if_still_in, os.getpid(), action, *arguments)


def _if_still_in(process: int, action: Callable[..., object], *arguments: object) -> None:
    if os.getpid() == process:
        action(*arguments)
