"""Golden vectors: inputs and reference outputs by which a module proves itself on its machine.

File layout (little endian): 8 bytes `TSGOLDEN`, uint32 version, uint32 number of
inputs, uint32 number of outputs, uint32 zero, float64 tolerance; then every
tensor, inputs first, as uint64 size in bytes and the raw data. Shapes and dtypes
are the module's own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import ArtifactError

FILE_NAME = "golden.bin"
_HEADER = struct.Struct("<8s4Id")
_MAGIC = b"TSGOLDEN"
_VERSION = 1


@dataclass(frozen=True)
class GoldenVectors:
    """One set of inputs with its reference outputs, in the module's order.

    An output agrees when no element is off by more than `tolerance` times the
    range (maximum - minimum) of the reference output.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    tolerance: float = 1e-3

    def encode(self) -> bytes:
        """The file's content."""
        parts = [
            _HEADER.pack(_MAGIC, _VERSION, len(self.inputs), len(self.outputs), 0, self.tolerance)
        ]
        for array in (*self.inputs, *self.outputs):
            raw = np.ascontiguousarray(array).tobytes()
            parts += [struct.pack("<Q", len(raw)), raw]
        return b"".join(parts)


def decode_golden(
    data: bytes,
    source: str,
    inputs: Sequence[tuple[np.dtype, tuple[int, ...]]],
    outputs: Sequence[tuple[np.dtype, tuple[int, ...]]],
) -> GoldenVectors:
    """Golden vectors from a file's content; `inputs` and `outputs` are (numpy dtype, shape) pairs.

    Raises ArtifactError, which names `source`, when the content does not fit them.
    """
    damaged = ArtifactError(f"{source}: damaged golden vectors; compile the model again")
    if len(data) < _HEADER.size:
        raise damaged
    magic, version, input_count, output_count, _, tolerance = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise damaged
    if (input_count, output_count) != (len(inputs), len(outputs)) or not tolerance >= 0:
        raise damaged
    position = _HEADER.size
    arrays = []
    for dtype, shape in (*inputs, *outputs):
        count = math.prod(shape)
        expected = count * dtype.itemsize
        if len(data) < position + 8 + expected:
            raise damaged
        (size,) = struct.unpack_from("<Q", data, position)
        if size != expected:
            raise damaged
        arrays.append(np.frombuffer(data, dtype, count, position + 8).reshape(shape))
        position += 8 + expected
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
