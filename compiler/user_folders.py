"""Where files are kept between runs: in the user's cache, or else in a folder for this boot."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where measurements and records of this machine are kept. It may not be there yet."""
    return _caches() / "tinsmith"


def tool_cache() -> Path:
    """A folder that can be written, where zig keeps what it has built of C libraries.

    Where the user has no home, or one that cannot be written, it lies among the temporary files.
    Raises OSError if it cannot be made there either.
    """
    chosen = _caches() / "zig"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        if os.access(chosen, os.W_OK | os.X_OK):
            return chosen
    except OSError:
        pass
    own = Path(tempfile.gettempdir()) / f"tinsmith-zig-{os.geteuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    status = own.lstat()
    # Everybody may make folders there: one that another user can write must not be used.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o22:
        raise PermissionError(f"{own} belongs to somebody else")
    return own


def _caches() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # a relative one counts for nothing, says the XDG specification
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME, and nobody of that number in /etc/passwd
        return Path(tempfile.gettempdir()) / f"tinsmith-cache-{os.geteuid()}"
