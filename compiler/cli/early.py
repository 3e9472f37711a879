"""What can be told at once: paths and targets that are not there.

Importing TVM and the runtimes takes seconds. Every command looks at what it was given first,
with nothing but the file system and the list of targets; whoever reads a file later looks again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinsmith.compiler.errors import (
    ArtifactError,
    BuildError,
    ConfigError,
    InputError,
    ModelError,
    TargetError,
)

_WORDS = {"calibration": "random", "evaluation": "random", "labels": "from-names"}
_MANIFEST = "manifest.json"


def check_model(path: Path | None) -> None:
    """Raise ModelError unless `path` is a regular file that can be read; None is none asked for."""
    if path is None:
        return
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}") from error
    folder = stat.S_ISDIR(found.st_mode)
    if not folder and not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path}: is not a regular file")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{path}: cannot be read: Permission denied")
    if found.st_size == 0:
        raise ModelError(f"{path}: is empty")
    from tinsmith.compiler.frontends.registry import frontend_of

    told = frontend_of(path).told_of(path)
    if told is not None:
        raise ModelError(f"{path}: {told}")
    if folder:
        raise ModelError(f"{path}: is not a regular file")


def check_targets(text: str) -> None:
    """Raise TargetError for a target that is not known, of one or several with commas."""
    for name in text.split(","):
        check_target(name.strip())


def check_target(name: str) -> None:
    """Raise TargetError for a target that is not known."""
    from tinsmith.targets.registry import get_target
    from tinsmith.targets.spec import UnknownTargetError

    try:
        get_target(name)
    except UnknownTargetError as error:
        raise TargetError(str(error)) from error


def check_samples(options: Mapping[str, Any]) -> None:
    """Raise InputError for samples or labels that are not there, by the options of these names."""
    for option, word in _WORDS.items():
        given = options.get(option)
        if isinstance(given, str) and given != word and not _exists(Path(given)):
            kind = "file" if option == "labels" else "file or folder"
            raise InputError(f"--{option} {given}: no such {kind}")


def check_module(path: Path) -> None:
    """Raise ArtifactError unless `path` is a folder with a manifest, or a file."""
    if path.is_dir():
        if not (path / _MANIFEST).exists():
            raise ArtifactError(f"{path}: not a compiled module (no {_MANIFEST})")
    elif not _exists(path):
        raise ArtifactError(f"{path}: no such module")
    elif not path.is_file():
        raise ArtifactError(f"{path}: neither a module's folder nor an archive of one")


def check_new_folder(path: Path) -> None:
    """Raise BuildError where no module can be written: on a file, over other files."""
    if not _exists(path):
        for parent in path.resolve().parents:
            if _exists(parent):
                if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                    reason = "Permission denied" if parent.is_dir() else "Not a directory"
                    raise BuildError(f"{path}: cannot write the module there: {reason}")
                return
    elif not path.is_dir():
        raise BuildError(f"{path}: is a file; choose a folder for the module")
    elif not (path / _MANIFEST).is_file() and any(path.iterdir()):
        raise BuildError(
            f"{path}: holds files that are not a compiled module; choose a new or empty folder"
        )


def check_new_file(option: str, path: Path | None) -> None:
    """Raise ConfigError, which names the option, where no file can be written."""
    if path is None:
        return
    parent = path.resolve().parent
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder")
    if not parent.is_dir():
        raise ConfigError(f"{option} {path}: no such folder {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: Permission denied")


def check_log(path: Path | None) -> None:
    """Raise ConfigError for records to read that are not there."""
    if path is not None and not path.is_dir():
        raise ConfigError(f"--log {path}: no such folder")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a loop, no permission
        return False
