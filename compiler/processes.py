"""Child processes: what they are given, and what they died of."""

from __future__ import annotations

import os
import signal
import sys


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports what this process can import, with `more` in it."""
    path = os.pathsep.join(part or "." for part in sys.path)
    return os.environ | {"PYTHONPATH": path} | more


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code; a negative one is a signal, as in `subprocess`."""
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
