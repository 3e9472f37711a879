"""Work that may hang, crash or eat memory on a strange file, in a process of its own.

It is a fork, which has the file's content already and sends the result back; limits of time and
memory end it, and nothing else.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tinsmith.compiler.processes import describe_exit, end_with_parent

# By the clock so many times the processor time, because the machine may be busy.
_CLOCK = 6
_BYTES, _TIMES_THE_MODEL = 2**30, 20


class ToolError(Exception):
    """The tool did not come to a result; the message says why."""


def forked(work: Callable[[], bytes], seconds: float, size: int) -> bytes:
    """What `work` returns, computed by a child of this process that copies no memory.

    `seconds` of processor time are allowed, and memory for a model of `size` bytes. Raises
    ToolError if it raises, dies, or uses up its time or memory.
    """
    memory = max(_BYTES, _TIMES_THE_MODEL * size)
    receiver, sender = os.pipe()
    try:
        with warnings.catch_warnings():
            # Python warns of other threads. The child takes no lock of theirs: it computes with
            # numpy and onnx, writes to its pipe, and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            parent = os.getpid()
            child = os.fork()
    except OSError as error:
        os.close(receiver)
        os.close(sender)
        raise ToolError(f"no process for it: {error.strerror}") from error
    if child == 0:
        os.close(receiver)
        end_with_parent(parent)
        _run(work, sender, seconds, memory)
    os.close(sender)
    try:
        content = _collect(receiver, _CLOCK * seconds)
    finally:
        os.close(receiver)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if content is None or code == -signal.SIGXCPU:
        raise ToolError(f"it takes longer than {seconds:.0f} s")
    if content[:1] != b"\1":
        told = content[1:].decode(errors="replace")
        raise ToolError(told or f"it {describe_exit(code)}")
    return content[1:]


def _run(work: Callable[[], bytes], sender: int, seconds: float, memory: int) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory,) * 2)
        processor = int(time.process_time() + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (processor, processor + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(sender, "wb") as pipe:
            try:
                answer = b"\1" + work()
            except MemoryError:
                answer = b"\0it takes too much memory"
            except Exception as error:
                lines = str(error).strip().splitlines()
                reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
                answer = b"\0" + reason.encode(errors="replace")
            pipe.write(answer)
    finally:
        # No destructors and no flushing: all of that belongs to the parent.
        os._exit(0)


def _collect(receiver: int, limit_seconds: float) -> bytes | None:
    """What comes through the pipe; None if time runs out."""
    parts: list[bytes] = []
    deadline = time.monotonic() + limit_seconds
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(receiver, 1 << 20)
                if not part:
                    return b"".join(parts)
                parts.append(part)
    return None
