"""A batch whose size is known when a module runs: what front ends tell, and what writers need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tinsmith.compiler.dimensions.images import Images


@dataclass(frozen=True)
class OpenAxes:
    """The dimension `name` may have any size from `low` to `high`.

    `axes` are the inputs that have it, each with the axis; shapes elsewhere are those at `high`.
    """

    name: str
    low: int
    high: int
    axes: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The smallest, a middle and the largest size."""
        return tuple(sorted({self.low, (self.low + self.high) // 2, self.high}))


@dataclass(frozen=True)
class OpenBatch:
    """How a graph that was compiled for `high` images runs for fewer.

    `inputs` and `outputs` are the images of each, None where there are none. `overrun` names, by
    kernel, the parameters of which images behind those asked for are touched: they cannot be
    memory of the caller.
    """

    name: str
    low: int
    high: int
    inputs: tuple[Images | None, ...]
    outputs: tuple[Images | None, ...]
    overrun: Mapping[str, frozenset[int]]
