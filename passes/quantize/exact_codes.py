"""Codes of 4 or 8 bits that give back float weights bit for bit, where there are such codes.

A model file may store weights in few bits: behind a Cast and a Mul, or behind a DequantizeLinear
of a tensor, of channels or of blocks, transposed before or after. Constant folding makes floats
of all that; they still lie on a grid for each group, `(code - offset) * scale`, with as many
steps as the codes had values. Numpy only.
"""

from __future__ import annotations

import numpy as np

from tinsmith.targets.compressed_weights import CompressedWeights, Grouping

# Steps between the smallest and the largest value of a group, by bits of a code.
_STEPS = {4: 15, 8: 255}
# Groups along the reduction of a matrix product: all of it, and what block-wise formats have.
_BLOCKS = (256, 128, 64, 32, 16)
# Neighbouring values of a group may be so many steps apart.
_LARGEST_GAP = 16
# A scale found by a division is off by the rounding of both numbers at most.
_LAST_PLACES = (0, 1, -1, 2, -2)
# So many columns tell whether it is worth looking at all; so many values are looked at at once.
_SAMPLE, _AT_ONCE = 8, 1 << 22
# A magnitude below this has not all digits.
_SMALLEST = float(np.finfo(np.float32).tiny) * 1024


def exact_codes(weights: np.ndarray) -> CompressedWeights | None:
    """Codes for float32 `weights` (HWIO or `[K, N]`) that `dequantize` to the very same numbers.

    None where there are none, or where they take more than half of the bytes.
    """
    taps, (channels, columns) = int(np.prod(weights.shape[:-2])), weights.shape[-2:]
    flat = np.ascontiguousarray(weights.reshape(-1, columns))
    whole = channels + channels % 2 if taps == 1 else channels
    groupings = [Grouping(taps, channels, taps, whole)]
    if taps == 1:
        groupings += [Grouping(1, channels, 1, size) for size in _BLOCKS if size < channels]
    for grouping in groupings:
        found = _on_grids(flat, grouping)
        if found is None:
            continue
        numbers, scales = found
        compressed = _compressed(weights.shape, numbers, scales, grouping)
        if compressed is not None and 2 * compressed.stored_bytes <= weights.nbytes:
            return compressed
    return None


def _on_grids(flat: np.ndarray, grouping: Grouping) -> tuple[np.ndarray, np.ndarray] | None:
    """int32 numbers like `flat` and float32 scales `[groups, columns]`, or None."""
    steps, columns = flat.shape
    if columns > _SAMPLE:
        few = flat[:, :: columns // _SAMPLE][:, :_SAMPLE]
        if _on_grids(np.ascontiguousarray(few), grouping) is None:
            return None
    size = grouping.group_channels if grouping.count > 1 else steps
    missing = -steps % size
    # What is added is zero, which lies on every grid.
    padded = np.pad(flat, [(0, missing), (0, 0)]) if missing else flat
    rows = padded.reshape(-1, size, columns).transpose(0, 2, 1).reshape(-1, size)
    numbers = np.empty(rows.shape, np.int32)
    scales = np.empty(len(rows), np.float32)
    chunk = max(1, _AT_ONCE // size)
    for begin in range(0, len(rows), chunk):
        part = slice(begin, begin + chunk)
        found = _grid(np.ascontiguousarray(rows[part]))
        if found is None:
            return None
        numbers[part], scales[part] = found
    groups = len(padded) // size
    ordered = numbers.reshape(groups, columns, size).transpose(0, 2, 1).reshape(-1, columns)
    return ordered[:steps], scales.reshape(groups, columns)


def _grid(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Whole numbers and scales `[rows]` whose products are `rows`; None unless all have them."""
    largest = np.abs(rows).max(1)
    if not np.isfinite(largest).all() or ((largest > 0) & (largest < _SMALLEST)).any():
        return None
    ordered = np.sort(np.abs(rows), axis=1)
    gaps = np.diff(ordered, axis=1, prepend=0).astype(np.float64)
    # Values of one code differ by nothing, those of two by a step at least.
    gaps[gaps == 0] = np.inf
    gap = gaps.min(1, initial=np.inf)
    if (gap * 2 * _STEPS[8] < largest).any():
        return None
    numbers = np.zeros(rows.shape, np.int32)
    scales = np.ones(len(rows), np.float32)
    open_rows = np.flatnonzero(largest > 0)
    for together in range(1, _LARGEST_GAP + 1):
        if not len(open_rows):
            break
        count = np.rint(largest[open_rows] * (together / gap[open_rows]))
        for places in _LAST_PLACES:
            step = (largest[open_rows] / np.maximum(count, 1)).astype(np.float32)
            bits = step.view(np.int32) + places
            step = bits.view(np.float32)
            found = np.rint(rows[open_rows] / step[:, None])
            fits = (found.astype(np.float32) * step[:, None] == rows[open_rows]).all(1)
            fits &= found.max(1) - found.min(1) <= _STEPS[8]
            numbers[open_rows[fits]] = found[fits]
            scales[open_rows[fits]] = step[fits]
            open_rows, count = open_rows[~fits], count[~fits]
            if not len(open_rows):
                break
    return None if len(open_rows) else (numbers, scales)


def _compressed(
    shape: tuple[int, ...], numbers: np.ndarray, scales: np.ndarray, grouping: Grouping
) -> CompressedWeights | None:
    """Codes for whole `numbers`, with the offsets that bring them into range."""
    groups = grouping.indices()
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    low = np.minimum.reduceat(numbers, begins, axis=0)
    high = np.maximum.reduceat(numbers, begins, axis=0)
    bits = 4 if (high - low <= _STEPS[4]).all() else 8
    half = 1 << (bits - 1)
    # code - offset is the number; a group that is in range has no offset.
    offsets = np.where((low >= -half) & (high < half), 0, -half - low)
    codes = numbers + offsets[groups]
    stored = codes.astype(np.int8) if bits == 8 else (codes + half).astype(np.uint8)
    with np.errstate(over="ignore"):
        short = scales.astype(np.float16)
    exact = np.array_equal(short.astype(np.float32), scales)
    return CompressedWeights(
        stored.reshape(shape),
        short if exact and not offsets.any() else scales,
        None,
        grouping,
        offsets.astype(np.float32) if offsets.any() else None,
        optional=True,
    )
