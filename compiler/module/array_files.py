"""A module's inputs in files of numpy arrays, and its outputs into one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.regular_file import open_regular


def read_arrays(options: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays that `--input name=file.npy` options name.

    `--input file.npy` will do for a model of one input (`names` are all of them), and
    `--input file.npz` holds several by name. Raises InputError.
    """
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, array: np.ndarray) -> None:
        if name in arrays:
            raise InputError(f"--input {name}=...: given twice; leave one of them out")
        arrays[name] = array

    for option in options:
        name, separator, file = option.rpartition("=")
        loaded = _load(Path(file))
        if isinstance(loaded, Mapping):
            if separator:
                raise InputError(
                    f"--input {option}: an .npz names its arrays itself: --input {file}"
                )
            for entry, array in loaded.items():
                add(entry, array)
        elif separator:
            add(name, loaded)
        elif len(names) == 1:
            add(names[0], loaded)
        else:
            raise InputError(
                f"--input {option}: say which input it is for: NAME={file} "
                f"(NAME is one of {', '.join(names)})"
            )
    unknown = sorted(set(arrays) - set(names))
    if unknown:
        raise InputError(f"no input is named {', '.join(unknown)}; there are {', '.join(names)}")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"no value for input {', '.join(missing)}: give --input {missing[0]}=FILE.npy"
        )
    return arrays


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with open(open_regular(path), "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _in_rows(loaded)
            return {name: _in_rows(loaded[name]) for name in loaded.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # numpy raises ValueError, BadZipFile, EOFError, OSError ...
        raise InputError(f"{path}: not a .npy or .npz file ({error})") from error


def _in_rows(array: np.ndarray) -> np.ndarray:
    """As modules take arrays: files may hold them by columns, or in the other byte order."""
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds something that is no array")
    native = array.dtype.newbyteorder("=") if array.dtype.kind in "biufc" else array.dtype
    return array.astype(native, order="C", copy=False)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `numpy.savez`, which takes no array named `file`. Raises OSError."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
