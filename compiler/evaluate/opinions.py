"""Asking other implementations of ONNX about a model: the parent's side of `oracle`."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import uuid
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

from tinsmith.compiler.evaluate.oracle import EVALUATOR, ONNX_RUNTIME, UNOPTIMISED, Answer, Arrays
from tinsmith.compiler.evaluate.peers import OnnxRuntime, installed
from tinsmith.compiler.processes import child_environment, describe_exit

_lock = threading.Lock()


def opinions() -> tuple[str, ...]:
    """Who can be asked here, in order."""
    return (ONNX_RUNTIME, UNOPTIMISED, EVALUATOR) if installed(OnnxRuntime) else (EVALUATOR,)


def label_of(who: str) -> str:
    """The name with the version: `ONNX Runtime 1.32.0 without optimisation`."""
    package = "onnx" if who == EVALUATOR else OnnxRuntime.package
    try:
        version = f" {metadata.version(package)}"
    except metadata.PackageNotFoundError:  # a build under another name
        version = ""
    if who == UNOPTIMISED:
        return f"{ONNX_RUNTIME}{version} without optimisation"
    return f"{who}{version}"


class Opinions:
    """One serialised ONNX model; whoever is asked computes in another process."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._content = content
        self._threads = threads
        self._identity = uuid.uuid4().hex

    def ask(self, who: str, inputs: Arrays, seconds: float) -> Answer:
        """The outputs by name, or a line that says why there are none after so many seconds."""
        with _lock:
            for _ in range(2):
                child = _Child.running()
                content = None if child.knows == self._identity else self._content
                try:
                    child.connection.send(
                        (self._identity, content, who, self._threads, dict(inputs))
                    )
                    child.knows = self._identity
                    if not child.connection.poll(seconds):
                        child.end()
                        return f"no answer after {seconds:.0f} s"
                    answer: Answer = child.connection.recv()
                    return answer
                except (EOFError, OSError):
                    code = child.end()
                    if code != 0:
                        return describe_exit(code)
                    # It was about to end because nothing had been asked for long.
        return "the process ended when it was asked"


class _Child:
    """The process that answers, one for each process that asks."""

    _current: _Child | None = None

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tinsmith.compiler.evaluate.oracle", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
            )
        self.connection: Any = Connection(ours.detach())
        self.knows = ""

    @classmethod
    def running(cls) -> _Child:
        """The one that runs, or a new one."""
        if cls._current is None:
            cls._current = cls()
        return cls._current

    def end(self) -> int:
        """Close the connection, and end the process if that does not; its exit code."""
        _Child._current = None
        self.connection.close()
        try:
            return self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @classmethod
    def forget(cls) -> None:
        """In a forked process: the child is that of the parent."""
        global _lock
        _lock = threading.Lock()
        if cls._current is not None:
            with contextlib.suppress(OSError):
                cls._current.connection.close()
            cls._current.process.returncode = 0  # nothing to wait for
            cls._current = None


def _end_at_exit() -> None:
    if _Child._current is not None:
        _Child._current.end()


atexit.register(_end_at_exit)
os.register_at_fork(after_in_child=_Child.forget)
