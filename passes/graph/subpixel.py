"""The arithmetic of transposed convolution as an ordinary one, in numpy.

A transposed convolution of stride s writes output o = s*q + r from the inputs i
and the taps k with o = s*i + k - pad. For one phase r only every s-th tap takes
part, at the inputs q + c, q + c - 1, ... All phases together are a convolution
of stride 1 whose output channels hold the s phases of each output channel
(Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
2016, arXiv:1609.07009).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SubpixelAxis:
    """One spatial axis of the equivalent convolution.

    `taps[r][j]` is the tap of the transposed kernel that phase r uses at window
    position j, or -1 for none. The convolution has `window` taps, the given
    padding, and `positions` outputs; phases interleaved they are
    `stride * positions` long, of which the first `extent` are wanted.
    """

    stride: int
    window: int
    pad_before: int
    pad_after: int
    positions: int
    extent: int
    taps: tuple[tuple[int, ...], ...]


def subpixel_axis(
    in_extent: int, kernel: int, stride: int, pad_before: int, out_extent: int
) -> SubpixelAxis:
    """How one axis of a transposed convolution of `kernel` taps becomes an ordinary one."""
    used: list[dict[int, int]] = []
    for phase in range(stride):
        first = (phase + pad_before) % stride
        centre = (phase + pad_before - first) // stride
        used.append({centre - t: tap for t, tap in enumerate(range(first, kernel, stride))})
    offsets = [offset for phase in used for offset in phase] or [0]
    # A window that began after the input, or ended before its end, would be negative padding.
    low = min(0, *offsets)
    positions = -(-out_extent // stride)
    high = max(*offsets, low, in_extent - positions)
    window = high - low + 1
    return SubpixelAxis(
        stride=stride,
        window=window,
        pad_before=-low,
        pad_after=positions - in_extent + low + window - 1,
        positions=positions,
        extent=out_extent,
        taps=tuple(
            tuple(phase.get(low + position, -1) for position in range(window)) for phase in used
        ),
    )


def subpixel_weights(
    weights: np.ndarray, groups: int, rows: SubpixelAxis, columns: SubpixelAxis
) -> np.ndarray:
    """Weights of the ordinary convolution.

    `weights` is `[I, O/groups, KH, KW]`; the result is `[groups * SH * SW * O/groups, I/groups,
    window height, window width]`: within a group the channels are ordered by row phase, column
    phase, output channel.
    """
    inputs, outputs, _, _ = weights.shape
    grouped = weights.reshape(groups, inputs // groups, outputs, *weights.shape[2:])
    result = np.zeros(
        (
            groups,
            rows.stride,
            columns.stride,
            outputs,
            inputs // groups,
            rows.window,
            columns.window,
        ),
        weights.dtype,
    )
    for row_phase, row_taps in enumerate(rows.taps):
        for column_phase, column_taps in enumerate(columns.taps):
            for y, row_tap in enumerate(row_taps):
                for x, column_tap in enumerate(column_taps):
                    if row_tap >= 0 and column_tap >= 0:
                        result[:, row_phase, column_phase, :, :, y, x] = grouped[
                            ..., row_tap, column_tap
                        ].transpose(0, 2, 1)
    return result.reshape(-1, inputs // groups, rows.window, columns.window)
