"""Golden vectors: inputs and reference outputs by which a module proves itself on its machine.

File layout (little endian): 8 bytes `TSGOLDEN`, uint32 version, uint32 number of
inputs, uint32 number of outputs, uint32 zero, float64 tolerance; then every
tensor, inputs first, as uint64 size in bytes and the raw data. Shapes and dtypes
are the module's own. In version 2, for modules with shapes that depend on data, each
tensor begins with uint64 rank and as many uint64 extents.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.errors import ArtifactError

FILE_NAME = "golden.bin"
_HEADER = struct.Struct("<8s4Id")
_MAGIC = b"TSGOLDEN"
_VERSION, _WITH_SHAPES = 1, 2


@dataclass(frozen=True)
class GoldenVectors:
    """One set of inputs with its reference outputs, in the module's order.

    An output agrees when no element is off by more than `tolerance` times the
    range (maximum - minimum) of the reference output.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    tolerance: float = 1e-3

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


def decode_golden(
    data: bytes,
    source: str,
    inputs: Sequence[tuple[np.dtype, tuple[int | None, ...]]],
    outputs: Sequence[tuple[np.dtype, tuple[int | None, ...]]],
) -> GoldenVectors:
    """Golden vectors from a file's content; `inputs` and `outputs` are (numpy dtype, shape) pairs.

    Extents are None where only the file knows them. Raises ArtifactError, which names `source`,
    when the content does not fit them.
    """
    try:
        return _decode(data, inputs, outputs)
    except (struct.error, ValueError) as error:
        raise ArtifactError(f"{source}: damaged golden vectors; compile the model again") from error


def _decode(
    data: bytes,
    inputs: Sequence[tuple[np.dtype, tuple[int | None, ...]]],
    outputs: Sequence[tuple[np.dtype, tuple[int | None, ...]]],
) -> GoldenVectors:
    """The content of a file; raises ValueError or struct.error where it is damaged."""
    magic, version, input_count, output_count, _, tolerance = _HEADER.unpack_from(data)
    known = magic == _MAGIC and version in (_VERSION, _WITH_SHAPES)
    if (
        not known
        or (input_count, output_count) != (len(inputs), len(outputs))
        or not tolerance >= 0
    ):
        raise ValueError("header")
    position = _HEADER.size
    arrays = []
    for dtype, declared in (*inputs, *outputs):
        shape: tuple[int | None, ...] = declared
        if version == _WITH_SHAPES:
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
    return GoldenVectors(tuple(arrays[:input_count]), tuple(arrays[input_count:]), tolerance)


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
