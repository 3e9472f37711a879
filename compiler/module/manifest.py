"""`manifest.json`: what a compiled module is, needs and consists of.

`FORMAT` is raised whenever a loader must know about a change; the log of the
changes is docs/module-format.md. Nothing here imports TVM.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import msgspec
from blake3 import blake3

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module.regular_file import open_regular
from tinsmith.compiler.scratch import replacing

FORMAT = 1
FILE_NAME = "manifest.json"
# Weights from this size on are mapped from their file; smaller ones are read into memory, where
# whoever rewrites the file changes nothing. Libraries likewise are loaded from a copy.
MAP_FROM_BYTES = 64 * 2**20
_LARGEST_MANIFEST = 64 * 2**20

# What a field must be; `read_manifest` holds a file to it.
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Share = Annotated[float, msgspec.Meta(ge=0)]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00]{1,255}$")]
_ElementType = Annotated[
    str, msgspec.Meta(pattern="^(b?float16|float32|float64|bool|u?int(8|16|32|64))$")
]


@dataclass(frozen=True)
class FileDigest:
    """Size and BLAKE3 digest (hexadecimal) of one of the module's files."""

    bytes: _Size
    blake3: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class TensorEntry:
    """An input or output as a caller sees it."""

    name: str
    dtype: _ElementType
    shape: Annotated[tuple[_Size | str, ...], msgspec.Meta(max_length=64)]


class MachineEntry(TypedDict):
    """The machine that a module is for; `cpu_features` are those that it must have."""

    name: str
    architecture: str
    triple: str
    cpu: str
    cpu_features: list[str]


class _KernelEntry(TypedDict):
    name: str
    calls: _Size


class KernelEntry(_KernelEntry, total=False):
    """A kernel: how often it is called, and what its template, if it has one, told of it.

    `nodes` are the names in the model's file of what it computes.
    """

    template: str
    template_version: int
    arithmetic: str
    decisions: dict[str, int]
    source: str
    flops: _Size
    bytes: _Size
    nodes: list[str]


class LatencyEntry(TypedDict, total=False):
    """The median of some runs on the machine that compiled the module."""

    median_ms: _Share
    runs: _Size
    threads: _Size
    cpu: str


class Measured(TypedDict, total=False):
    """What was found out after compilation; reports are checked where they are read."""

    latency: LatencyEntry
    accuracy: dict[str, int | float]
    quantization: dict[str, Any]
    pruning: dict[str, Any]
    # By output: how far the golden vectors are from the float model.
    float_model: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest; the field names are those in the file.

    `form` is "self-contained" or "vm" (then `vm_reason` says why). `kernels` has one entry
    per distinct kernel, `steps` the kernels' names in order of execution.
    """

    format: int
    form: str
    name: str
    tinsmith: str
    tvm: str
    entry: str
    target: MachineEntry
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: dict[_FileName, FileDigest]
    weights_bytes: _Size = 0
    weights_embedded: bool = True
    arena_bytes: _Size = 0
    tolerance: _Share = 0.0
    vm_reason: str = ""
    kernels: tuple[KernelEntry, ...] = ()
    steps: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)

    @property
    def weights_mapped(self) -> bool:
        """Whether a running process reads the weights from their file, page by page."""
        return not self.weights_embedded and self.weights_bytes >= MAP_FROM_BYTES

    @property
    def deployed_bytes(self) -> int:
        """Size of what has to be deployed: the library and the weights beside it."""
        names = ("model.so", "weights.bin")
        return sum(self.files[name].bytes for name in names if name in self.files)

    def to_json(self) -> str:
        """The manifest's text: stable order, one trailing newline."""
        plain = msgspec.to_builtins(asdict(self))
        return json.dumps(_without_infinities(plain), indent=1, ensure_ascii=False) + "\n"


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
        with open(open_regular(path), "rb") as stream:
            text = stream.read(_LARGEST_MANIFEST + 1)
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: not a compiled module (no {FILE_NAME})") from error
    except NotADirectoryError as error:
        raise ArtifactError(f"{folder}: not a compiled module (no folder)") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > _LARGEST_MANIFEST:
        raise ArtifactError(f"{path}: damaged, too large; compile the model again")
    try:
        data = json.loads(
            text,
            parse_float=_finite,
            parse_constant=lambda _: None,
            object_pairs_hook=_without_duplicates,
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged, not valid JSON; compile the model again") from error
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise ArtifactError(f"{path}: has no format version; not written by Tinsmith")
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: format {version}, this Tinsmith reads format {FORMAT}; "
            "compile the model again or use the matching version"
        )
    try:
        return _checked(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); compile the model again") from error


def _checked(data: dict[str, Any]) -> Manifest:
    """The manifest that `data` holds; ValueError (msgspec's errors are one) says what is wrong."""
    unknown = sorted(data.keys() - {entry.name for entry in fields(Manifest)})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    manifest = msgspec.convert(data, Manifest)
    names = [tensor.name for tensor in manifest.inputs]
    if len(set(names)) < len(names):
        raise ValueError("two inputs have the same name")
    return manifest


def _finite(text: str) -> float:
    """Numbers such as 1e400 are infinite as float64, and no figure of ours."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


def _without_infinities(value: Any) -> Any:
    """JSON has no infinite numbers and no NaN: None in their place."""
    if isinstance(value, dict):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries


def update_measured(folder: str | os.PathLike[str], **measured: Any) -> Manifest:
    """Merge `measured` (such as `latency={...}`, `accuracy={...}`) into a module's manifest."""
    root = Path(folder)
    manifest = read_manifest(root)
    merged = cast("Measured", {**manifest.measured, **measured})
    updated = replace(manifest, measured=merged)
    write_atomically(root / FILE_NAME, updated.to_json().encode())
    return updated


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new, never a part."""
    with replacing(path) as stream:
        stream.write(content)
