"""A module for several levels of one family: a folder that holds a module for each.

The folder itself is the module of the lowest level, which older versions of Tinsmith load, too.
`levels.json` lists the others, the best last; each is a module of its own in `levels/NAME/`. Files
of weights that are equal are there once, in the folder itself. Nothing here imports TVM.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from tinsmith.compiler.errors import ArtifactError, ConfigError
from tinsmith.compiler.module.machine import check_machine
from tinsmith.compiler.module.manifest import FILE_NAME as MANIFEST_NAME
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.module.regular_file import open_regular

FILE_NAME = "levels.json"
FOLDER_NAME = "levels"
FORMAT = 1
_LARGEST = 64 * 1024

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


class _Listing(msgspec.Struct, forbid_unknown_fields=True):
    """What `levels.json` holds."""

    format: int
    levels: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class Level:
    """One of a module's levels: its target, its folder, and why it cannot run here, if so."""

    name: str
    folder: Path
    refusal: str


def listing(names: list[str]) -> str:
    """The text of `levels.json` for the levels above the lowest, the best last."""
    return json.dumps({"format": FORMAT, "levels": names}, indent=1) + "\n"


def has_levels(folder: Path) -> bool:
    """Whether a module has more than one level."""
    return (folder / FILE_NAME).is_file()


def levels_of(folder: Path) -> tuple[Level, ...]:
    """All levels of the module in `folder`, the lowest first, which is the only one of most.

    Raises ArtifactError for a damaged list, or a level that is not there.
    """
    folders = [folder]
    if has_levels(folder):
        folders += [folder / FOLDER_NAME / name for name in _names(folder / FILE_NAME)]
    levels = []
    for place in folders:
        target = read_manifest(place).target
        try:
            check_machine(str(place), target)
        except ArtifactError as error:
            levels.append(Level(target.name, place, str(error)))
        else:
            levels.append(Level(target.name, place, ""))
    return tuple(levels)


def level_folder(folder: Path, name: str | None = None) -> Path:
    """The folder of the level `name`; without, of the best one that this machine runs.

    That is `folder` itself where there are no levels, or none can run. Raises ConfigError for a
    level that there is not, ArtifactError as `levels_of` does.
    """
    if name is None and not has_levels(folder):
        return folder
    levels = levels_of(folder)
    if name is not None:
        found = {level.name: level.folder for level in levels}
        if name not in found:
            raise ConfigError(f"{folder}: has no level {name!r}; it has {', '.join(found)}")
        return found[name]
    return next((level.folder for level in reversed(levels) if not level.refusal), folder)


def place_of(folder: Path, name: str) -> Path:
    """Where the file `name` of the module in `folder` is: weights may be those of all levels."""
    own = folder / name
    if folder.parent.name == FOLDER_NAME and not own.exists():
        shared = folder.parent.parent / name
        return shared if shared.exists() else own
    return own


def _names(path: Path) -> list[str]:
    try:
        with open(open_regular(path), "rb") as stream:
            text = stream.read(_LARGEST + 1)
        found = msgspec.json.decode(text[:_LARGEST], type=_Listing)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); compile the model again") from error
    if found.format != FORMAT:
        raise ArtifactError(
            f"{path}: format {found.format}, this Tinsmith reads format {FORMAT}; "
            "compile the model again or use the matching version"
        )
    if len(set(found.levels)) < len(found.levels):
        raise ArtifactError(f"{path}: damaged (a level is there twice); compile the model again")
    return found.levels


def copy_level(folder: Path, name: str, destination: Path) -> Path:
    """Makes the level `name` a module of its own at `destination`, a new folder, to be run.

    Raises ConfigError for a level that there is not, ArtifactError for one that cannot run here.
    """
    level = level_folder(folder, name)
    check_machine(str(folder), read_manifest(level).target)
    destination.mkdir()
    for file in (MANIFEST_NAME, *read_manifest(level).files):
        shutil.copy(place_of(level, file), destination / file)
    return destination
