"""Opening files that somebody else chose: a pipe must not block, a device must not be read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading the regular file `path`.

    Raises OSError for anything else, a folder included: a FIFO would be waited for, a device is
    endless.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(Path(path)))
    return descriptor
