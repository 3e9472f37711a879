"""Codes of 1, 2 or 4 bits in bytes.

The first code lies in the lowest bits of a byte, as ONNX packs int4; each row (last
axis) begins with a new byte, so that rows can be addressed.
"""

from __future__ import annotations

import numpy as np

from tinsmith.passes.quantize.formats.granularity import FormatError


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes (..., n), int8 or uint8, into uint8 (..., ceil(n * bits / 8)).

    Raises FormatError if a code needs more bits, or `bits` is not 1, 2, 4 or 8.
    """
    per_byte = _per_byte(bits)
    if codes.dtype not in (np.int8, np.uint8) or codes.ndim == 0:
        raise FormatError(f"codes to pack are int8 or uint8 vectors, not {codes.dtype}")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if codes.dtype == np.uint8:
        low, high = 0, 2**bits - 1
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise FormatError(f"codes outside of {low}..{high} do not fit {bits} bits")
    if per_byte == 1:
        return codes.view(np.uint8).copy()
    masked = codes.view(np.uint8) & np.uint8(2**bits - 1)
    missing = -codes.shape[-1] % per_byte
    padded = np.pad(masked, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    lanes = padded.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(lanes << shifts, axis=-1)


def unpack(packed: np.ndarray, bits: int, count: int, *, signed: bool) -> np.ndarray:
    """The inverse of `pack`: (..., count) codes, int8 if signed and else uint8."""
    per_byte = _per_byte(bits)
    if packed.dtype != np.uint8 or packed.shape[-1] != -(-count // per_byte):
        raise FormatError(
            f"{count} codes of {bits} bits are {-(-count // per_byte)} bytes (uint8), "
            f"not {packed.shape[-1]} of {packed.dtype}"
        )
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    lanes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    codes = lanes.reshape(*packed.shape[:-1], -1)[..., :count]
    if not signed:
        return np.ascontiguousarray(codes)
    # Moving the sign bit up to the top of the byte and back extends it.
    unused = np.uint8(8 - bits)
    return (codes << unused).view(np.int8) >> unused.view(np.int8)


def _per_byte(bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise FormatError(f"codes of {bits} bits cannot be packed; choose 1, 2, 4 or 8")
    return 8 // bits
