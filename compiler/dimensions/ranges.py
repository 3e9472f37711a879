"""Sizes that are known when a module runs. Nothing here imports TVM."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from tinsmith.compiler.errors import ConfigError

_TEXT = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Range:
    """Any size from `low` to `high`, chosen with each run: in the place of a size of a shape.

    Raises ConfigError unless 1 <= low < high.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        sizes = (self.low, self.high)
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if not whole or not 1 <= self.low < self.high:
            raise ConfigError(f"the range {self}: expected two positive integers, the lesser first")

    @property
    def middle(self) -> int:
        """The geometric mean, to the nearest integer: `high` is as many times it as it is `low`."""
        return round(math.sqrt(self.low * self.high))

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


# A size of a shape, or the sizes that it may have when a module runs.
Size: TypeAlias = int | Range


def parse_size(text: str) -> Size:
    """`8` or `1..8`; raises ValueError for another text, ConfigError for an empty range."""
    found = _TEXT.fullmatch(text.strip())
    return Range(int(found[1]), int(found[2])) if found else int(text)


def highest(size: Size) -> int:
    """The size itself, or the largest of a range."""
    return size.high if isinstance(size, Range) else size
