"""Files of JSON lines that grow by whole, flushed lines and survive being killed.

One line is one entry. A line is on the disk when `append` returns; a line that
was torn by a crash is cut off by the next writer and skipped by every reader.
Writers of one folder exclude each other with a lock that the kernel gives back
when a process dies.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.module.manifest import write_atomically
from tinsmith.compiler.module.regular_file import open_regular

# More than any line or file that Tinsmith writes; what is larger is not read.
MOST_BYTES_OF_LINE = 64 * 1024
MOST_BYTES_OF_FILE = 256 * 1024 * 1024


@contextmanager
def locked(path: Path, *, wait: bool = True, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path`, made if it is missing.

    Without `wait`, ConfigError with the message `busy` is raised if another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ConfigError(busy) from error
        yield
    finally:
        os.close(descriptor)


def append(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add entries and return when they are on the disk; the caller holds the folder's lock."""
    lines = b"".join(_line(entry) for entry in entries)
    if not lines:
        return
    with open(path, "a+b") as stream:
        stream.truncate(_whole_bytes(stream.fileno()))
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


def rewrite(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Replace all entries at once; the caller holds the folder's lock."""
    write_atomically(path, b"".join(map(_line, entries)))


def state(path: Path) -> tuple[int, ...]:
    """Another one whenever the file was written to; empty as long as there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All entries, and how many lines are none. A file that does not exist is empty.

    Raises ConfigError if the file is larger than any that Tinsmith writes.
    """
    try:
        if path.stat().st_size > MOST_BYTES_OF_FILE:
            raise ConfigError(f"{path}: too large for a tuning log")
        with open(open_regular(path), "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    entries: list[dict[str, Any]] = []
    damaged = 0
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            entry = json.loads(line) if len(line) <= MOST_BYTES_OF_LINE else None
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _whole_bytes(descriptor: int) -> int:
    """The length of a file up to and with its last line end."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - 4096)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
