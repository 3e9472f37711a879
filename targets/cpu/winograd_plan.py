"""Estimated times of a convolution by the direct and by Winograd's algorithm.

They choose the algorithm, and the decisions of Winograd's, where no search has. The estimates
count cycles: multiply-adds of vectors, as `step_cycles` has them; the transforms; and the
weights, which are the traffic that matters with few pixels. In a network they come from memory:
those of other layers have passed through the caches since. Winograd's are fetched ahead, so that
most of the shorter of both times hides in the longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import tvm

from tinsmith.targets.cpu.arithmetic import arithmetic_named
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload
from tinsmith.targets.cpu.schedules.half_panel import has_half_weights
from tinsmith.targets.cpu.schedules.register_tile import (
    choose_tile,
    least_sizes,
    step_cycles,
    tiled_cycles,
)
from tinsmith.targets.spec import TargetSpec

# Larger blocks of tiles or wider register tiles than this are not considered.
MOST_TILES, MOST_VECTORS = 128, 6
# Cycles for each position of a tile and vector of channels: loads, arithmetic and stores.
_TRANSFORM_CYCLES = 4
# The same for weights that a kernel transforms itself.
_WEIGHT_CYCLES = 3
# Share of the shorter of two times, computing and reading ahead, that the longer does not hide.
_EXPOSED = 0.25


@dataclass(frozen=True)
class Plan:
    """The decisions of `WinogradTemplate`, with an estimate of what they cost."""

    tiles: int
    rows: int
    vectors: int
    chunks: int

    def cycles(self, w: WinogradWorkload, spec: TargetSpec) -> float:
        """Estimated cycles from the first task's begin to the last one's end."""
        c, positions = w.convolution, w.patch**2
        groups = math.ceil(math.ceil(c.blocks / self.vectors) / self.chunks)
        blocks = min(c.blocks, groups * self.vectors)
        steps = positions * c.in_channels * math.ceil(self.tiles / self.rows) * groups
        products = steps * step_cycles(self.rows, self.vectors, spec.rates)
        vectors = math.ceil(c.in_channels / c.lanes) + blocks
        transforms = _TRANSFORM_CYCLES * positions * self.tiles * vectors
        scratch = 4 * positions * self.tiles * (c.in_channels + self.vectors * c.lanes)
        slower = 1.0 + 0.1 * max(0.0, 2 * scratch / spec.l2_bytes - 1.0)
        tasks = math.ceil(math.prod(w.tiles) / self.tiles) * self.chunks
        rounds = math.ceil(tasks / spec.cores)
        weights = weight_bytes(c) * positions * c.in_channels * blocks * c.lanes
        if w.transforms_weights:
            weights = weights * 9 // positions
            transforms += _WEIGHT_CYCLES * positions * c.in_channels * blocks
        computing = rounds * (products * slower + transforms)
        again = 0 if weights <= spec.l2_bytes // 2 else rounds - 1
        reading = weights / spec.rates.memory_bytes + again * weights / spec.rates.cache_bytes
        return max(computing, reading) + _EXPOSED * min(computing, reading)


def best_plan(w: WinogradWorkload, spec: TargetSpec) -> Plan:
    """The plan of least estimated time."""
    return min(_plans(w, spec), key=lambda plan: plan.cycles(w, spec))


def direct_cycles(w: ConvolutionWorkload, spec: TargetSpec) -> float:
    """Estimated cycles of the direct algorithm for a 3x3 kernel, at its best."""
    # Steps that would meet padding are left out.
    rows = w.in_height * w.kernel_height - 2 * w.pad_top
    columns = w.in_width * w.kernel_width - 2 * w.pad_left
    inside = min(1.0, rows / (w.out_height * w.kernel_height))
    inside *= min(1.0, columns / (w.out_width * w.kernel_width))
    line = w.out_width * w.blocks / spec.rates.fmas
    arithmetic = arithmetic_named(w.arithmetic)
    if has_half_weights(arithmetic):
        # Of these the ideal is too far off: small images leave room for few rows to share a weight
        # that was widened.
        tile = choose_tile(w.out_width, w.blocks, spec, arithmetic)
        line = tiled_cycles(w.out_width, w.blocks, tile, spec.rates, arithmetic.operations)
    steps = w.batch * w.out_height * w.kernel_height * w.kernel_width * w.in_channels
    weights = w.kernel_height * w.kernel_width * w.in_channels * w.blocks * w.lanes
    reading = weight_bytes(w) * weights / spec.rates.memory_bytes
    return (inside * steps * line + reading) / spec.cores


def weight_bytes(w: ConvolutionWorkload) -> int:
    """Bytes of a stored weight."""
    return tvm.DataType(arithmetic_named(w.arithmetic).weights).bits // 8


def _plans(w: WinogradWorkload, spec: TargetSpec) -> Iterator[Plan]:
    """The plans worth an estimate: blocks of tiles, register tiles and chunks of equal size."""
    count, blocks = math.prod(w.tiles), w.convolution.blocks
    sizes = least_sizes(count, MOST_TILES)
    # One vector alone has as many loads as multiply-adds.
    for tiles, vectors in product(sizes, range(min(2, blocks), min(blocks, MOST_VECTORS) + 1)):
        most_rows = (spec.vector_registers - 1 - vectors) // vectors
        rows = math.ceil(tiles / math.ceil(tiles / most_rows))
        most_chunks = min(math.ceil(blocks / vectors), spec.cores)
        for chunks in (2**i for i in range(most_chunks.bit_length())):
            yield Plan(tiles, rows, vectors, chunks)
