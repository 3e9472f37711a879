"""Making a folder appear complete or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.manifest import FILE_NAME as MANIFEST_NAME
from tinsmith.compiler.scratch import ScratchFolder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def scratch_folder(destination: Path) -> Iterator[Path]:
    """An empty folder beside `destination`; whatever is left of it is deleted at the end.

    Raises `BuildError` when `destination` cannot become a module.
    """
    if destination.exists() and not destination.is_dir():
        raise BuildError(f"{destination}: is a file; choose a folder for the module")
    if destination.is_dir() and not _replaceable(destination):
        raise BuildError(
            f"{destination}: holds files that are not a compiled module; "
            "choose a new or empty folder"
        )
    parent = destination.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = ScratchFolder(parent, hidden=True)
        scratch.path.chmod(0o755)
    except OSError as error:
        raise BuildError(
            f"{destination}: cannot write the module there: {error.strerror}"
        ) from error
    if destination.is_dir() and not os.access(destination, os.W_OK):
        scratch.close()
        raise BuildError(f"{destination}: cannot write the module there: Permission denied")
    with scratch as folder:
        yield folder


def replace_folder(source: Path, destination: Path) -> None:
    """Flush `source` to disk and put it at `destination`; what was there is swapped into `source`.

    On Linux the exchange is one system call, so that a reader never sees a
    missing or mixed folder.
    """
    for path in source.iterdir():
        _flush(path)
    _flush(source)
    target = destination.resolve()
    if not target.exists():
        os.rename(source, target)
    elif not _exchange(source, target):
        aside = source.with_name(source.name + ".old")
        os.rename(target, aside)
        os.rename(source, target)
        shutil.rmtree(aside, ignore_errors=True)
    _flush(target.parent)


def set_aside(source: Path, destination: Path) -> Path:
    """Put a module that may not take the place of `destination` beside it; where it is now.

    The name is that of `destination` and `.failed`. Raises `OSError` where that is not possible.
    """
    target = destination.resolve()
    for number in ("", *(f"-{i}" for i in range(2, 100))):
        aside = target.with_name(f"{target.name}.failed{number}")
        if not aside.exists() or (aside.is_dir() and _replaceable(aside)):
            replace_folder(source, aside)
            return destination.with_name(aside.name)
    raise FileExistsError(f"{destination}.failed: is no module")


def _replaceable(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() or not any(folder.iterdir())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(status == 0)
