"""Walks through trees of decisions, which come from the front end as finished loops."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinsmith.targets.unscheduled import Finished


@dataclass(frozen=True)
class ForestWorkload:
    """Each of `rows` goes through `trees`, by way of about `levels` branches."""

    rows: int
    trees: int
    levels: int

    @property
    def flops(self) -> int:
        """Comparisons."""
        return self.rows * self.trees * self.levels


class ForestTemplate(Finished):
    """Functions marked as forests by their definition, which knows what each step needs."""

    name = "forest"

    def read(self, text: str) -> ForestWorkload | None:
        found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}
        return ForestWorkload(**found) if set(found) == {"rows", "trees", "levels"} else None
