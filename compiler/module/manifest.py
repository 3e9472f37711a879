"""`manifest.json`: what a compiled module is, needs and consists of.

`FORMAT` is raised whenever a loader must know about a change; the log of the
changes is docs/module-format.md. Older formats are brought up to date as they are read: what
loads once loads for good, and tests keep a module of each. Nothing here imports TVM.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
from blake3 import blake3

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module.regular_file import open_regular
from tinsmith.compiler.scratch import replacing

FORMAT, OLDEST_FORMAT = 3, 1
FILE_NAME = "manifest.json"
# Weights from this size on are mapped from their file; smaller ones are read into memory, where
# whoever rewrites the file changes nothing. Libraries likewise are loaded from a copy.
MAP_FROM_BYTES = 64 * 2**20
_LARGEST_MANIFEST = 64 * 2**20

# What a field must be. The structures below are what is written, and what a file is held to.
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Share = Annotated[float, msgspec.Meta(ge=0)]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00]{1,255}$")]
_ElementType = Annotated[
    str, msgspec.Meta(pattern="^(b?float16|float32|float64|bool|u?int(8|16|32|64))$")
]


def _plain_string(value: Any) -> str:
    """Names that come from TVM are of a subclass of `str`, which msgspec asks about."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"a manifest holds no {type(value).__name__}")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the manifest; the field names are those in the file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return cast("dict[str, Any]", msgspec.to_builtins(self, enc_hook=_plain_string))


class FileDigest(_Entry, frozen=True):
    """Size and BLAKE3 digest (hexadecimal) of one of the module's files."""

    bytes: _Size
    blake3: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class TensorEntry(_Entry, frozen=True):
    """An input or output as a caller sees it."""

    name: str
    dtype: _ElementType
    shape: Annotated[tuple[_Size | str, ...], msgspec.Meta(max_length=64)]


class DimensionEntry(_Entry, frozen=True):
    """A dimension whose size is told with each run: from `low` to `high`."""

    name: str
    low: _Size
    high: _Size


class MachineEntry(_Entry, frozen=True):
    """The machine that a module is for; `cpu_features` are those that it must have."""

    name: str
    architecture: str
    triple: str
    cpu: str
    cpu_features: tuple[str, ...]


class KernelEntry(_Entry, frozen=True):
    """A kernel: how often it is called, and what its template, if it has one, told of it.

    `source` says where the `decisions` come from, `flops` and `bytes` are those of one call,
    `nodes` are the names in the model's file of what it computes.
    """

    name: str
    calls: _Size
    template: str = ""
    template_version: int = 0
    arithmetic: str = ""
    decisions: dict[str, int] = {}
    source: str = ""
    flops: _Size = 0
    bytes: _Size = 0
    nodes: tuple[str, ...] = ()


class PassEntry(_Entry, frozen=True):
    """A pass over the graph, and how long it took; None where that was not written down."""

    name: str
    seconds: _Share | None = None


class LatencyEntry(_Entry, frozen=True):
    """The median of some runs on the machine that compiled the module.

    `sizes` are those of the dimensions whose size is open.
    """

    median_ms: _Share
    runs: _Size = 0
    threads: _Size = 0
    cpu: str = ""
    sizes: dict[str, _Size] = {}


class RecordEntry(_Entry, frozen=True):
    """A tuning record that a kernel's decisions come from.

    `ratio` is the kernel's time relative to its template's default when it was tuned, `trials`
    how many candidates were measured, on which `processor`, and when.
    """

    kernel: str
    ratio: _Share
    trials: _Size
    processor: str = ""
    date: str = ""


class TuningEntry(_Entry, frozen=True):
    """Which tuning records were applied; `coverage` says so in a line, and what was not."""

    coverage: str
    records: tuple[RecordEntry, ...] = ()


class Measured(_Entry, frozen=True, omit_defaults=True):
    """What was found out after compilation; reports are checked where they are read.

    `float_model` says by output how far the golden vectors are from the float model.
    """

    latency: LatencyEntry | None = None
    accuracy: dict[str, int | float] | None = None
    quantization: dict[str, Any] | None = None
    pruning: dict[str, Any] | None = None
    float_model: dict[str, dict[str, float | None]] | None = None
    tuning: TuningEntry | None = None


class Manifest(_Entry, frozen=True, kw_only=True):
    """The parsed manifest.

    `form` is "self-contained" or "vm" (then `vm_reason` says why). `kernels` has one entry
    per distinct kernel, `steps` the kernels' names in order of execution. `dims` are the
    dimensions that shapes have by name, where their bounds are known.
    """

    format: int = FORMAT
    form: str
    name: str
    tinsmith: str
    tvm: str
    entry: str
    target: MachineEntry
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: dict[_FileName, FileDigest]
    dims: tuple[DimensionEntry, ...] = ()
    weights_bytes: _Size = 0
    weights_embedded: bool = True
    arena_bytes: _Size = 0
    tolerance: _Share = 0.0
    vm_reason: str = ""
    kernels: tuple[KernelEntry, ...] = ()
    steps: tuple[str, ...] = ()
    passes: tuple[PassEntry, ...] = ()
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    measured: Measured = Measured()

    @property
    def weights_mapped(self) -> bool:
        """Whether a running process reads the weights from their file, page by page."""
        return not self.weights_embedded and self.weights_bytes >= MAP_FROM_BYTES

    @property
    def deployed_bytes(self) -> int:
        """Size of what has to be deployed: the library and the weights beside it."""
        names = ("model.so", "weights.bin")
        return sum(self.files[name].bytes for name in names if name in self.files)

    @property
    def extreme_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """The smallest and the largest size of each dimension; nothing if all are fixed."""
        return {d.name: d.low for d in self.dims}, {d.name: d.high for d in self.dims}

    def sized(self, sizes: Mapping[str, int]) -> Manifest:
        """The manifest of the module with these sizes of its dimensions."""

        def fixed(tensors: Sequence[TensorEntry]) -> tuple[TensorEntry, ...]:
            return tuple(TensorEntry(t.name, t.dtype, shape_at(t.shape, sizes)) for t in tensors)

        return msgspec.structs.replace(
            self, inputs=fixed(self.inputs), outputs=fixed(self.outputs), dims=()
        )

    def to_json(self) -> str:
        """The manifest's text: stable order, one trailing newline; null for what is infinite."""
        text = msgspec.json.encode(self, enc_hook=_plain_string)
        return msgspec.json.format(text, indent=1).decode() + "\n"


def shape_at(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    """A shape with the sizes of dimensions in the place of their names: `batch`, `4*batch`."""

    def extent(named: int | str) -> int | str:
        if isinstance(named, int):
            return named
        factor, _, name = named.rpartition("*")
        return int(factor or 1) * sizes[name] if name in sizes else named

    return tuple(map(extent, shape))


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
        why = f"not a compiled module (no {FILE_NAME})" if folder.exists() else "no such module"
        raise ArtifactError(f"{folder}: {why}") from error
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
    if not OLDEST_FORMAT <= version <= FORMAT:
        raise ArtifactError(
            f"{path}: format {version}, this Tinsmith reads formats {OLDEST_FORMAT} to {FORMAT}; "
            "compile the model again or use the matching version"
        )
    try:
        if version == 1:
            data = _from_format_1(data)
        return _checked({**data, "format": FORMAT})  # which only added since
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); compile the model again") from error


def _checked(data: dict[str, Any]) -> Manifest:
    """The manifest that `data` holds; ValueError (msgspec's errors are one) says what is wrong."""
    manifest = msgspec.convert(data, Manifest)
    names = [tensor.name for tensor in manifest.inputs]
    if len(set(names)) < len(names):
        raise ValueError("two inputs have the same name")
    return manifest


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Passes had names alone. Whatever else is wrong is found by the schema."""
    passes = data.get("passes", ())
    if not isinstance(passes, list):
        raise ValueError("passes: expected a list of names")
    return {**data, "format": FORMAT, "passes": [{"name": name} for name in passes]}


def _finite(text: str) -> float:
    """Numbers such as 1e400 are infinite as float64, and no figure of ours."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries


def update_measured(folder: str | os.PathLike[str], **measured: Any) -> Manifest:
    """Put `measured`, fields of `Measured` as entries or plain data, into a module's manifest.

    Raises ArtifactError for a manifest that is damaged, ValueError for what is no such field.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    given = cast("dict[str, Any]", msgspec.to_builtins(measured, enc_hook=_plain_string))
    merged = msgspec.convert({**manifest.measured.to_dict(), **given}, Measured)
    updated = msgspec.structs.replace(manifest, measured=merged)
    write_atomically(root / FILE_NAME, updated.to_json().encode())
    return updated


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new, never a part."""
    with replacing(path) as stream:
        stream.write(content)
