"""Golden vectors: inputs and reference outputs by which a module proves itself on its machine.

File layout (little endian): 8 bytes `TSGOLDEN`, uint32 version, uint32 number of
inputs, uint32 number of outputs, uint32 zero, float64 tolerance; then every
tensor, inputs first, as uint64 size in bytes and the raw data. Shapes and dtypes
are the module's own. In version 2, for modules with shapes that depend on data, each
tensor begins with uint64 rank and as many uint64 extents. In version 3, for modules with open
dimensions, the number that is zero before is that of the sets of tensors, which follow each
other, each beginning with uint64 number of dimensions and the int64 size of each.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.errors import ArtifactError

FILE_NAME = "golden.bin"
_HEADER = struct.Struct("<8s4Id")
_MAGIC = b"TSGOLDEN"
_VERSION, _WITH_SHAPES, _WITH_SIZES = 1, 2, 3
# More than any module has; a damaged file may claim any number.
_MOST_SETS = 1024


@dataclass(frozen=True)
class GoldenVectors:
    """One set of inputs with its reference outputs, in the module's order.

    An output agrees when no element is off by more than `tolerance` times the
    range (maximum - minimum) of the reference output. `sizes` are those of the module's open
    dimensions.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    tolerance: float = 1e-3
    sizes: tuple[int, ...] = ()

    def encode(self, with_shapes: bool = False) -> bytes:
        """The file's content; `with_shapes` where the module's own shapes are not fixed."""
        version = _WITH_SHAPES if with_shapes else _VERSION
        parts = [
            _HEADER.pack(_MAGIC, version, len(self.inputs), len(self.outputs), 0, self.tolerance)
        ]
        for array in (*self.inputs, *self.outputs):
            if with_shapes:
                parts.append(struct.pack(f"<{1 + array.ndim}Q", array.ndim, *array.shape))
            raw = np.ascontiguousarray(array).tobytes()
            parts += [struct.pack("<Q", len(raw)), raw]
        return b"".join(parts)


def encode_sets(sets: Sequence[GoldenVectors]) -> bytes:
    """The file's content for a module with open dimensions: the same tensors at several sizes."""
    first = sets[0]
    counts = len(first.inputs), len(first.outputs)
    parts = [_HEADER.pack(_MAGIC, _WITH_SIZES, *counts, len(sets), first.tolerance)]
    for golden in sets:
        parts.append(struct.pack(f"<Q{len(golden.sizes)}q", len(golden.sizes), *golden.sizes))
        for array in (*golden.inputs, *golden.outputs):
            raw = np.ascontiguousarray(array).tobytes()
            parts += [struct.pack("<Q", len(raw)), raw]
    return b"".join(parts)


Described = Sequence[tuple[np.dtype, tuple[int | None, ...]]]


def decode_golden(data: bytes, source: str, inputs: Described, outputs: Described) -> GoldenVectors:
    """Golden vectors from a file's content; `inputs` and `outputs` are (numpy dtype, shape) pairs.

    Extents are None where only the file knows them. Raises ArtifactError, which names `source`,
    when the content does not fit them.
    """
    try:
        version, _, tolerance = _header(data, len(inputs), len(outputs), (_VERSION, _WITH_SHAPES))
        described = (*inputs, *outputs)
        arrays, _ = _tensors(data, _HEADER.size, described, version == _WITH_SHAPES)
    except (struct.error, ValueError) as error:
        raise _damaged(source) from error
    return GoldenVectors(tuple(arrays[: len(inputs)]), tuple(arrays[len(inputs) :]), tolerance)


def decode_sets(
    data: bytes,
    source: str,
    described: Callable[[tuple[int, ...]], tuple[Described, Described]],
) -> tuple[GoldenVectors, ...]:
    """All golden vectors of a module with open dimensions.

    `described` tells inputs and outputs, as `decode_golden` takes them, from the sizes of the
    dimensions; it raises ValueError for sizes that make no sense. Raises ArtifactError likewise.
    """
    try:
        sets: list[GoldenVectors] = []
        position, count = _HEADER.size, 1
        while len(sets) < count:
            (rank,) = struct.unpack_from("<Q", data, position)
            if rank > _MOST_SETS:
                raise ValueError("sizes")
            sizes = struct.unpack_from(f"<{rank}q", data, position + 8)
            inputs, outputs = described(sizes)
            _, count, tolerance = _header(data, len(inputs), len(outputs), (_WITH_SIZES,))
            if not 1 <= count <= _MOST_SETS:
                raise ValueError("sets")
            start = position + 8 * (1 + rank)
            arrays, position = _tensors(data, start, (*inputs, *outputs), with_shapes=False)
            known, results = tuple(arrays[: len(inputs)]), tuple(arrays[len(inputs) :])
            sets.append(GoldenVectors(known, results, tolerance, sizes))
        return tuple(sets)
    except (struct.error, ValueError) as error:
        raise _damaged(source) from error


def _damaged(source: str) -> ArtifactError:
    return ArtifactError(f"{source}: damaged golden vectors; compile the model again")


def _header(
    data: bytes, inputs: int, outputs: int, versions: Sequence[int]
) -> tuple[int, int, float]:
    """Version, number of sets and tolerance; ValueError for a header of something else."""
    magic, version, input_count, output_count, sets, tolerance = _HEADER.unpack_from(data)
    known = magic == _MAGIC and version in versions
    if not known or (input_count, output_count) != (inputs, outputs) or not tolerance >= 0:
        raise ValueError("header")
    return version, sets, tolerance


def _tensors(
    data: bytes, position: int, described: Described, with_shapes: bool
) -> tuple[list[np.ndarray], int]:
    """The tensors from `position` on, and where they end; ValueError where they do not fit."""
    arrays = []
    for dtype, declared in described:
        shape: tuple[int | None, ...] = declared
        if with_shapes:
            (rank,) = struct.unpack_from("<Q", data, position)
            if rank != len(declared):
                raise ValueError("rank")
            shape = struct.unpack_from(f"<{rank}Q", data, position + 8)
            position += 8 * (1 + rank)
            if any(size not in (None, given) for size, given in zip(declared, shape, strict=True)):
                raise ValueError("shape")
        extents = [int(size) for size in shape if size is not None]
        expected = math.prod(extents) * dtype.itemsize
        (size,) = struct.unpack_from("<Q", data, position)
        position += 8
        if len(extents) != len(shape) or size != expected or len(data) < position + size:
            raise ValueError("size")
        array = np.frombuffer(data, dtype, size // dtype.itemsize, position)
        arrays.append(array.reshape(extents))
        position += size
    return arrays, position


def largest_deviation(actual: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference, relative to the reference's range; inf when NaNs differ."""
    a, r = actual.astype(np.float64), reference.astype(np.float64)
    same = (a == r) | (np.isnan(a) & np.isnan(r))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - r))
    if not np.isfinite(difference).all():
        return float("inf")
    finite = r[np.isfinite(r)]
    spread = float(finite.max() - finite.min()) if finite.size else 0.0
    scale = spread or float(np.abs(finite).max(initial=0.0)) or 1.0
    return float(difference.max()) / scale
