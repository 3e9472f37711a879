"""Offsets for buffers that live at different times in one block of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    @property
    def padded(self) -> int:
        """The size that is reserved: a multiple of the alignment, at least one unit."""
        return max(1, -(-self.size // ALIGNMENT)) * ALIGNMENT

    def overlaps(self, other: Lifetime) -> bool:
        """Whether some step needs both buffers."""
        return self.first <= other.last and other.first <= self.last


def place_buffers(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Byte offsets (multiples of 64) for all buffers, and the size of the whole.

    Greedy by size: the largest buffer first, each into the smallest gap that
    holds it among the buffers alive at the same time (Pisarchyk and Lee,
    "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].padded, i)):
        current = lifetimes[i]
        neighbours = sorted(
            (offsets[j], offsets[j] + lifetimes[j].padded)
            for j in placed
            if lifetimes[j].overlaps(current)
        )
        best, best_gap, position = -1, -1, 0
        for start, end in neighbours:
            gap = start - position
            if gap >= current.padded and (best < 0 or gap < best_gap):
                best, best_gap = position, gap
            position = max(position, end)
        offsets[i] = best if best >= 0 else position
        placed.append(i)
        total = max(total, offsets[i] + current.padded)
    return offsets, total


def live_peak(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes alive at any one step: no plan can need less."""
    steps = {lifetime.first for lifetime in lifetimes}
    return max(
        (sum(b.padded for b in lifetimes if b.first <= step <= b.last) for step in steps),
        default=0,
    )
