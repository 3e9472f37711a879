"""Tensors that an ONNX model keeps in files beside it, read only after all has been checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from tinsmith.compiler.errors import ModelError, UnsafeModelError
from tinsmith.compiler.frontends.onnx.tensors import all_tensors, tensor_bytes
from tinsmith.compiler.module.regular_file import open_regular

_LONGEST_LOCATION = 1024
# So many bytes of external data are read without a question. Of more, tensors may share what
# the files hold (tied weights), and files may have holes, to these factors.
_UNQUESTIONED = 2**28
_SHARED, _SPARSE = 4, 20


def load_external(model: ModelProto, model_path: Path) -> None:
    """Replace references to data outside `model` by the data.

    Raises UnsafeModelError for a place outside the folder of `model_path`, for sizes that
    contradict, and for tensors that ask for far more than the files hold; ModelError if a file
    is missing or cannot be read.
    """
    places = [
        (tensor, _placed(tensor, model_path))
        for tensor in all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    _check_total([place for _, place in places], model_path)
    for tensor, place in places:
        _load(tensor, place)


@dataclass(frozen=True)
class _Place:
    """Where the data of one tensor are. `where` begins messages about it."""

    path: Path
    offset: int
    length: int
    where: str


def _placed(tensor: TensorProto, model_path: Path) -> _Place:
    where = f"{model_path}: external data of tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data_path = _safe_location(entries.get("location", ""), model_path, where)
    offset = _count(entries, "offset", 0, where)
    expected = tensor_bytes(tensor)
    length = _count(entries, "length", expected, where)
    if length != expected:
        raise UnsafeModelError(
            f"{where}: length {length} contradicts shape {list(tensor.dims)}, "
            f"which needs {expected} bytes"
        )
    return _Place(data_path, offset, length, where)


def _check_total(places: Sequence[_Place], model_path: Path) -> None:
    """Raise UnsafeModelError if tensors share or imagine most of their bytes."""
    total = sum(place.length for place in places)
    if total <= _UNQUESTIONED:
        return
    try:
        found = [os.stat(path) for path in {place.path for place in places}]
    except OSError as error:
        raise ModelError(f"{model_path}: external data: {error.strerror or error}") from error
    if total > _SHARED * sum(status.st_size for status in found):
        raise UnsafeModelError(
            f"{model_path}: its tensors ask for {total} bytes of external data, more than "
            f"{_SHARED} times what the files hold"
        )
    # A file of holes is as large as it says and takes no room on the disk.
    if total > _SPARSE * sum(512 * status.st_blocks for status in found):
        raise UnsafeModelError(
            f"{model_path}: its external data are {total} bytes, of which next to nothing is "
            "on the disk (sparse files)"
        )


def _load(tensor: TensorProto, place: _Place) -> None:
    data_path, offset, length, where = place.path, place.offset, place.length, place.where
    try:
        with open(open_regular(data_path), "rb") as file:
            status = os.fstat(file.fileno())
            if offset + length > status.st_size:
                raise UnsafeModelError(
                    f"{where}: bytes {offset} to {offset + length} lie beyond the end of "
                    f"{data_path.name!r} ({status.st_size} bytes)"
                )
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise ModelError(f"{where}: {data_path.name!r}: {error.strerror or error}") from error
    if len(data) != length:
        raise ModelError(f"{where}: {data_path.name!r} ended early")
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _safe_location(location: str, model_path: Path, where: str) -> Path:
    """The file that `location` names, which must lie inside the folder of the model."""
    # A backslash separates folders for the tools of another system: no file needs one.
    if len(location) > _LONGEST_LOCATION:
        raise UnsafeModelError(f"{where}: the location has {len(location)} characters")
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise UnsafeModelError(f"{where}: the location {location!r} is not a file name")
    if location.startswith(("/", "\\")) or ":" in parts[0]:
        raise UnsafeModelError(f"{where}: the location {location!r} is an absolute path")
    if ".." in parts:
        raise UnsafeModelError(f"{where}: the location {location!r} leaves the model's folder")
    folder = Path(os.path.realpath(model_path)).parent
    try:
        resolved = Path(os.path.realpath(folder / location))
        resolved.exists()
    except (OSError, ValueError) as error:
        raise UnsafeModelError(f"{where}: the location {location!r} is no file name") from error
    if not resolved.is_relative_to(folder):
        raise UnsafeModelError(
            f"{where}: {location!r} is a link to a file outside the model's folder"
        )
    if not resolved.exists():
        raise ModelError(f"{where}: the file {location!r} is missing beside the model")
    if not resolved.is_file():
        raise UnsafeModelError(f"{where}: {location!r} is not a regular file")
    return resolved


def _count(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key)
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise UnsafeModelError(f"{where}: {key} {text[:40]!r} is not a count of bytes")
    return int(text)
