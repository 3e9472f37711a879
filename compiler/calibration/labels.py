"""The class of each sample, from a file, from the samples' archive, or from names of pictures."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.calibration.choice import RandomSource
from tinsmith.compiler.calibration.images import ImageFolderSource
from tinsmith.compiler.calibration.source import CalibrationSource
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.module.regular_file import open_regular

FROM_NAMES = "from-names"
_ARRAY = "labels"


def read_labels(labels: Any, data: Any, source: CalibrationSource) -> np.ndarray | None:
    """The class index (int64) of each row that `source` reads, in its order; None without labels.

    `labels` is a file (.npy, or .csv or .txt with one integer in each line), the word
    "from-names", an array, or None. `data` is what `source` was opened from: if that is an
    .npz with an array `labels`, no more is needed. There is one label for each sample of
    the data, also for those that are not read because of a limit. "from-names" takes the
    number that is the name of a picture's folder, or else its own: `17/cat.jpg`, `0017.jpg`.

    Raises ConfigError and InputError, in one line, for labels that are no class indices, or
    not as many as there are samples.
    """
    if labels is None:
        labels = _archived(data)
        if labels is None:
            return None
    if isinstance(source, RandomSource):
        raise ConfigError("--labels: random data have no classes; pass real data")
    if isinstance(labels, str) and labels == FROM_NAMES:
        return _from_names(source)
    where = f"--labels {labels}" if isinstance(labels, str | Path) else "labels"
    values = _read(Path(labels)) if isinstance(labels, str | Path) else np.asarray(labels)
    values = _checked(values, where)
    if source.rows is None:
        return values
    if len(values) != source.rows:
        raise InputError(f"{where}: {len(values)} labels for {source.rows} samples")
    return values[np.asarray(source.chosen)]


def _archived(data: Any) -> np.ndarray | None:
    """The array `labels` of an .npz, if `data` is one that has it."""
    if not isinstance(data, str | Path) or Path(data).suffix.lower() != ".npz":
        return None
    try:
        with np.load(data, allow_pickle=False) as archive:
            return np.asarray(archive[_ARRAY]) if _ARRAY in archive else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{data}: array {_ARRAY} cannot be read ({error})") from error


def _from_names(source: CalibrationSource) -> np.ndarray:
    if not isinstance(source, ImageFolderSource):
        raise ConfigError(
            f"--labels {FROM_NAMES}: is for folders of pictures, not for {source.label}"
        )
    classes = []
    for path in source.files:
        # A folder named by a number is a class; a picture's own name may be anything then.
        inside = path.parent != source.folder and path.parent.name.isdecimal()
        name = path.parent.name if inside else path.stem
        if not name.isdecimal():
            raise InputError(
                f"--labels {FROM_NAMES}: {path}: neither the file nor its folder is named by a "
                "class index"
            )
        classes.append(int(name))
    return np.array(classes, np.int64)


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            with open(open_regular(path), "rb") as content:
                return np.asarray(np.load(content, allow_pickle=False))
        if path.suffix.lower() not in (".csv", ".txt"):
            raise InputError(f"--labels {path}: not a .npy, .csv or .txt file")
        with open(open_regular(path), encoding="utf-8") as stream:
            lines = stream.read().split("\n")
    except FileNotFoundError as error:
        raise InputError(f"--labels {path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--labels {path}: cannot be read ({error})") from error
    values = []
    for number, line in enumerate(lines, 1):
        text = line.strip().rstrip(",")
        if text:
            try:
                values.append(int(text))
            except ValueError as error:
                raise InputError(
                    f"--labels {path}: line {number}: {text[:40]!r} is no class index; one "
                    "integer in each line is expected"
                ) from error
    return np.array(values, np.int64)


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"{where}: one integer for each sample is expected, not {values.dtype} {values.shape}"
        )
    if values.size and int(values.min()) < 0:
        raise InputError(f"{where}: class indices are not negative, as {int(values.min())} is")
    return values.astype(np.int64)
