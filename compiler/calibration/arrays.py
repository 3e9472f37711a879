"""Samples from numpy files and from Python."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.calibration.preprocessing import Preprocessing
from tinsmith.compiler.calibration.source import (
    CalibrationSource,
    Sample,
    batches,
    check_names,
    others,
    spread,
)
from tinsmith.compiler.errors import ConfigError, InputError, TinsmithError
from tinsmith.compiler.evaluate.inputs import Signature
from tinsmith.compiler.module.regular_file import open_regular

# Names under which the one input of a model is looked for in an archive.
_USUAL_NAMES = ("x", "images", "image", "input", "inputs", "data", "samples")


@dataclass(frozen=True)
class StoredArray:
    """An array that is read row by row: `rows` begins anew at each call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[], Iterator[np.ndarray]]


class StackedSource(CalibrationSource):
    """For each input an array whose first axis counts the samples.

    Each row is one sample without a batch axis, or a whole batch as the model takes it.
    Rows without one are converted by `preprocessing` and stacked to batches.
    """

    def __init__(
        self,
        arrays: Mapping[str, StoredArray],
        signature: Signature,
        preprocessing: Preprocessing,
        limit: int | None = None,
        label: str = "calibration data",
    ) -> None:
        super().__init__(label, signature)
        if preprocessing.resize is not None:
            raise ConfigError(f"{label}: --resize applies to a folder of pictures, not to arrays")
        self._arrays = dict(arrays)
        self._preprocessing = preprocessing
        check_names(self._arrays, signature, label)
        lengths = {array.shape[0] if array.shape else 0 for array in self._arrays.values()}
        if len(lengths) > 1:
            listed = ", ".join(f"{n} {a.shape}" for n, a in self._arrays.items())
            raise InputError(f"{label}: the arrays have different numbers of samples: {listed}")
        rows = lengths.pop()
        if rows == 0:
            raise InputError(f"{label}: the set of samples is empty")
        self._rows = rows
        self._chosen = spread(rows, limit)
        whole = {len(array.shape) == len(signature[n][0]) + 1 for n, array in self._arrays.items()}
        sizes = {signature[name][0][0] if signature[name][0] else 1 for name in signature}
        self._whole = whole == {True}
        if not self._whole and (len(whole) > 1 or len(sizes) > 1):
            raise InputError(f"{label}: rows must be whole batches for a model of several batches")
        self._batch = 1 if self._whole else sizes.pop()
        if not self._whole and any(a.dtype == np.uint8 for a in self._arrays.values()):
            self.notes = (f"{label}: bytes are taken as pixels, white as "
                          f"{preprocessing.pixel_range:g}",)  # fmt: skip

    @property
    def count(self) -> int:
        return -(-len(self._chosen) // self._batch)

    @property
    def rows(self) -> int | None:
        """Unknown if each row is a whole batch of several."""
        one = all((shape[:1] or (1,))[0] == 1 for shape, _ in self.signature.values())
        return self._rows if not self._whole or one else None

    @property
    def chosen(self) -> Sequence[int]:
        return self._chosen

    @property
    def left_out(self) -> Sequence[int]:
        return others(self._rows, self._chosen) if self.rows is not None else ()

    def with_rows(self, rows: Sequence[int]) -> StackedSource:
        other = copy(self)
        other._chosen = list(rows)
        return other

    def _samples(self) -> Iterator[Sample]:
        streams = [self._inputs(name) for name in self.signature]
        for arrays in zip(*streams, strict=True):
            yield dict(zip(self.signature, arrays, strict=True))

    def _inputs(self, name: str) -> Iterator[np.ndarray]:
        shape, dtype = self.signature[name]
        chosen = iter(self._chosen)
        wanted = next(chosen, None)

        def selected() -> Iterator[np.ndarray]:
            nonlocal wanted
            for index, row in enumerate(self._arrays[name].rows()):
                if wanted is None:
                    return
                if index == wanted:
                    wanted = next(chosen, None)
                    yield row

        if self._whole:
            for row in selected():
                yield row.astype(dtype, casting="same_kind", copy=False)
            return
        converted = (
            located(self.label, self._preprocessing.convert, row, name, shape, np.dtype(dtype))
            for row in selected()
        )
        yield from batches(converted, self._batch)


class IterableSource(CalibrationSource):
    """What a Python iterable yields: dicts by input name, or arrays if there is one input.

    Also a function that returns such an iterable is taken. An array is a whole input, or
    one sample without its batch axis. An iterator that cannot begin again can
    be used once; ConfigError after that.
    """

    def __init__(
        self,
        data: Iterable[Any] | Callable[[], Iterable[Any]],
        signature: Signature,
        preprocessing: Preprocessing,
        limit: int | None = None,
        label: str = "calibration data",
    ) -> None:
        super().__init__(label, signature)
        self._data = data
        self._preprocessing = preprocessing
        self._limit = limit
        self._used = False

    @property
    def count(self) -> int | None:
        length = getattr(self._data, "__len__", None)
        if length is None:
            return self._limit
        return int(length()) if self._limit is None else min(int(length()), self._limit)

    def _samples(self) -> Iterator[Sample]:
        data = self._data() if callable(self._data) else self._data
        iterator = iter(data)
        if iterator is data and not callable(self._data):
            if self._used:
                raise ConfigError(
                    f"{self.label}: an iterator can be read only once; pass a list, or a "
                    "function that returns a new iterator"
                )
            self._used = True
        for index, item in enumerate(iterator):
            if index == self._limit:
                return
            yield self._sample(item, f"{self.label}: sample {index}")

    def _sample(self, item: Any, where: str) -> Sample:
        if isinstance(item, Mapping):
            named = dict(item)
        elif isinstance(item, tuple | list) and len(item) == len(self.signature):
            named = dict(zip(self.signature, item, strict=True))
        elif len(self.signature) == 1:
            named = {next(iter(self.signature)): item}
        else:
            raise InputError(
                f"{where}: {type(item).__name__} for {len(self.signature)} inputs; "
                "pass a dict from input names to arrays"
            )
        check_names(named, self.signature, where)
        return {name: self._array(np.asarray(named[name]), name, where) for name in self.signature}

    def _array(self, array: np.ndarray, name: str, where: str) -> np.ndarray:
        shape, dtype = self.signature[name]
        if not shape:
            return array.astype(dtype)
        rows = array if array.ndim == len(shape) else array[None]
        if rows.shape[0] != shape[0]:
            raise InputError(
                f"{where}: input {name} has shape {array.shape}, the model takes {tuple(shape)}"
            )
        convert = self._preprocessing.convert
        return np.stack([located(where, convert, r, name, shape, np.dtype(dtype)) for r in rows])


def stored_arrays(path: Path, signature: Signature) -> dict[str, StoredArray]:
    """The arrays of an .npy or .npz file, by input name; nothing but headers is read yet.

    In an archive an array is found by the input's name; for a model of one input also a
    single array, or one of a usual name (x, images, data, ...), is taken. Raises InputError
    if the file cannot be read or the arrays are not there.
    """
    try:
        # What is opened by name later would wait for a pipe.
        os.close(open_regular(path))
        if path.suffix.lower() == ".npy":
            return _from_npy(path, signature)
        return _from_npz(path, signature)
    except TinsmithError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable numpy file ({error})") from error


def in_memory(array: np.ndarray) -> StoredArray:
    """An array that is in memory already."""
    return StoredArray(array.shape, array.dtype, lambda: iter(array))


def located(where: str, convert: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
    """`convert(*arguments)`, with the place in front of the message of an InputError."""
    try:
        return convert(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _from_npy(path: Path, signature: Signature) -> dict[str, StoredArray]:
    if len(signature) != 1:
        raise InputError(
            f"{path}: one array for the {len(signature)} inputs of the model; pass an .npz"
        )
    # Mapped, not read: only the rows in use come into memory.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {next(iter(signature)): in_memory(array)}


def _from_npz(path: Path, signature: Signature) -> dict[str, StoredArray]:
    with zipfile.ZipFile(path) as archive:
        entries = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    if not entries:
        raise InputError(f"{path}: the archive has no arrays")
    chosen = {name: name for name in signature if name in entries}
    if len(signature) == 1 and not chosen:
        candidates = entries if len(entries) == 1 else [n for n in _USUAL_NAMES if n in entries]
        if candidates:
            chosen = {next(iter(signature)): candidates[0]}
    missing = [name for name in signature if name not in chosen]
    if missing:
        raise InputError(
            f"{path}: no array for input {missing[0]}; the archive has {', '.join(entries)}"
        )
    return {name: _archived(path, entry) for name, entry in chosen.items()}


def _archived(path: Path, entry: str) -> StoredArray:
    """An array in an archive, read as a stream: never the whole of it is in memory."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{entry}.npy") as stream:
        shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise InputError(f"{path}: array {entry} holds Python objects, not numbers")
    row_shape = shape[1:]
    row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize

    def rows() -> Iterator[np.ndarray]:
        if fortran or not shape:  # rows do not lie one behind the other
            with np.load(path, allow_pickle=False) as archive:
                yield from np.atleast_1d(archive[entry])
            return
        with zipfile.ZipFile(path) as archive, archive.open(f"{entry}.npy") as stream:
            _header(stream)
            for _ in range(shape[0]):
                content = stream.read(row_bytes)
                if len(content) != row_bytes:
                    raise InputError(f"{path}: array {entry} is cut off")
                yield np.frombuffer(content, dtype).reshape(row_shape)

    return StoredArray(shape, dtype, rows)


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype at the beginning of an .npy file; ValueError if it is none."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    shape, fortran, dtype = header
    return tuple(shape), bool(fortran), np.dtype(dtype)
