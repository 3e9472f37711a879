"""`manifest.json`: what a compiled module is, needs and consists of.

`FORMAT` is raised whenever a loader must know about a change; the log of the
changes is docs/module-format.md. Nothing here imports TVM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from compiler.errors import ArtifactError

FORMAT = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class FileDigest:
    """Size and BLAKE3 digest (hexadecimal) of one of the module's files."""

    bytes: int
    blake3: str


@dataclass(frozen=True)
class TensorEntry:
    """An input or output as a caller sees it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest; the field names are those in the file.

    `form` is "self-contained" or "vm" (then `vm_reason` says why). `target` has
    name, architecture, triple, cpu and cpu_features. `kernels` has one entry
    per distinct kernel, `steps` the kernels' names in order of execution.
    `measured` is filled in later: latency and accuracy.
    """

    format: int
    form: str
    name: str
    tinsmith: str
    tvm: str
    entry: str
    target: Mapping[str, Any]
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: Mapping[str, FileDigest]
    weights_bytes: int = 0
    weights_embedded: bool = True
    arena_bytes: int = 0
    tolerance: float = 0.0
    vm_reason: str = ""
    kernels: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deployed_bytes(self) -> int:
        """Size of what has to be deployed: the library and the weights beside it."""
        names = ("model.so", "weights.bin")
        return sum(self.files[name].bytes for name in names if name in self.files)

    def to_json(self) -> str:
        """The manifest's text: stable order, one trailing newline."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, default=list) + "\n"


def digest_bytes(data: Any) -> FileDigest:
    """Digest of a bytes-like object."""
    view = memoryview(data)
    return FileDigest(view.nbytes, blake3(view).hexdigest())


def digest_file(path: Path) -> FileDigest:
    """Digest of a file's content."""
    hasher = blake3()
    hasher.update_mmap(path)
    return FileDigest(path.stat().st_size, hasher.hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`. Raises `ArtifactError` with one line."""
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: not a compiled module (no {FILE_NAME})") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged, not valid JSON; compile the model again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{path}: has no format version; not written by Tinsmith")
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: format {version}, this Tinsmith reads format {FORMAT}; "
            "compile the model again or use the matching version"
        )
    try:
        data["inputs"] = tuple(_tensor_entry(entry) for entry in data["inputs"])
        data["outputs"] = tuple(_tensor_entry(entry) for entry in data["outputs"])
        data["files"] = {
            _plain_name(name): FileDigest(int(entry["bytes"]), str(entry["blake3"]))
            for name, entry in data["files"].items()
        }
        for key in ("kernels", "steps", "passes", "notes"):
            data[key] = tuple(data[key])
        return Manifest(**data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); compile the model again") from error


def update_measured(folder: str | os.PathLike[str], **measured: Any) -> Manifest:
    """Merge `measured` (such as `latency={...}`, `accuracy={...}`) into a module's manifest."""
    root = Path(folder)
    manifest = read_manifest(root)
    data = {**manifest.__dict__, "measured": {**manifest.measured, **measured}}
    updated = Manifest(**data)
    write_atomically(root / FILE_NAME, updated.to_json().encode())
    return updated


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tensor_entry(data: Mapping[str, Any]) -> TensorEntry:
    shape = tuple(extent if isinstance(extent, str) else int(extent) for extent in data["shape"])
    return TensorEntry(str(data["name"]), str(data["dtype"]), shape)


def _plain_name(name: str) -> str:
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError(f"file name {name!r}")
    return name
