"""What a process died of."""

from __future__ import annotations

import os
import signal


def describe_exit(status: int) -> str:
    """How a process ended, by the status that waitpid told."""
    if os.WIFSIGNALED(status):
        return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with code {os.WEXITSTATUS(status)}"
