"""Temporary files and folders that go even when their process was killed.

Each is locked for as long as its process lives (`flock`, which a killed process loses). Whoever
makes the next one beside it removes those that nobody holds any more; a live process's are
never touched, whichever container or user it runs in.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tinsmith.compiler.processes import at_end

_PREFIX = "tinsmith-held-"


class ScratchFolder:
    """A folder of its own inside `parent`, by default the system's for temporary files.

    `close` deletes it, as does the end of the process, or the object's. Raises OSError where it
    cannot be made.
    """

    def __init__(self, parent: Path | None = None, hidden: bool = False) -> None:
        where = Path(tempfile.gettempdir()) if parent is None else parent
        prefix = f".{_PREFIX}" if hidden else _PREFIX
        remove_abandoned(where, prefix)
        self.path, lock = _held(lambda: tempfile.mkdtemp(prefix=prefix, dir=where))
        self._end = at_end(self, _remove, self.path, lock)

    def close(self) -> None:
        """Delete the folder with all that is in it; a forked child's call does nothing."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def replacing(destination: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `destination` at the end, complete and on disk.

    A reader sees the old or the new one, never a part. After an exception nothing has changed.
    Raises OSError where it cannot be written.
    """
    # Not through a link: what it points to is replaced where that is.
    target = destination.resolve()
    if target.exists() and not target.is_file():  # a device would be gone
        raise OSError(errno.EINVAL, "not a regular file", str(destination))
    prefix = f".{_PREFIX}"
    remove_abandoned(target.parent, prefix)
    path, lock = _held(lambda: _new_file(target.parent, prefix))
    try:
        with open(lock, "wb", closefd=False) as stream:
            yield stream
            stream.flush()
            os.fsync(lock)
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the user's files and folders in `parent` whose processes were killed."""
    try:
        entries = [entry for entry in os.scandir(parent) if entry.name.startswith(prefix)]
    except OSError:
        return  # whoever makes something there is told
    for entry in entries:
        with suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            lock = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(lock).st_mode):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
            finally:
                os.close(lock)


def _new_file(parent: Path, prefix: str) -> str:
    # Not by `tempfile`: others may read the result, as any file that is written.
    path = parent / f"{prefix}{secrets.token_hex(8)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    return str(path)


def _held(make: Callable[[], str]) -> tuple[Path, int]:
    """What `make` makes, locked; another process may take it for abandoned before it is."""
    while True:
        path = Path(make())
        try:
            lock = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks: then nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return path, lock
        os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)
