"""Which candidates of a task to measure next.

Small spaces are tried as a whole. In larger ones the cost model ranks all that
has not been tried, and a batch are half its favourites, half those of the
neighbours of the best (one decision changed, as evolutionary search mutates),
which it ranks too; and some by chance, so that what the model has wrong comes to
light. Shares and sizes are what `benchmarks/search.py` found best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinsmith.compiler.tuning.cost_model import CostModel
from tinsmith.compiler.tuning.records import decisions_key
from tinsmith.targets.template import Decisions

# Shares of a batch: neighbours of the best, and chance.
_NEIGHBOURS, _CHANCE = 0.5, 0.1
_PARENTS = 3

Key = tuple[tuple[str, int], ...]


@dataclass
class Search:
    """The search of one task. `space` are all candidates, the default first.

    `tried` has the ratio to the default of what was measured (infinite for a failure).
    `starts` are decisions to try first: those of near machines. The same seed and the same
    answers give the same proposals.
    """

    space: Sequence[Decisions]
    numbers: Mapping[str, int]
    seed: int = 0
    strategy: str = "model"
    starts: Sequence[Decisions] = ()
    tried: dict[Key, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)
        self._by_key = {decisions_key(decisions): decisions for decisions in self.space}
        self.tried.setdefault(decisions_key(self.space[0]), 1.0)

    @property
    def left(self) -> int:
        """Candidates that were not tried."""
        return sum(key not in self.tried for key in self._by_key)

    @property
    def best(self) -> tuple[Decisions, float]:
        """The fastest candidate so far with its ratio; the default has 1."""
        key = min((key for key in self.tried if key in self._by_key), key=self.tried.__getitem__)
        return self._by_key[key], self.tried[key]

    def fastest(self, count: int) -> list[Decisions]:
        """Up to `count` candidates that were faster than the default, fastest first."""
        known = [key for key in self.tried if key in self._by_key and self.tried[key] < 1.0]
        return [self._by_key[key] for key in sorted(known, key=self.tried.__getitem__)[:count]]

    def propose(self, count: int, model: CostModel) -> list[Decisions]:
        """Up to `count` candidates that were not tried; empty when the space is exhausted."""
        rest = [key for key in self._by_key if key not in self.tried]
        if len(rest) <= count:
            return [self._by_key[key] for key in rest]
        chosen: dict[Key, None] = {}
        if self.strategy == "model":
            untried = set(rest)
            starts = (decisions_key(start) for start in self.starts)
            chosen.update((key, None) for key in starts if key in untried)
            expected = model.predict(self.numbers, [self._by_key[key] for key in rest])
            if expected is not None:
                ranked = self._ranked(rest, expected)
                self._add(chosen, ranked, count - int(count * _CHANCE))
        shuffled = [rest[i] for i in self._generator.permutation(len(rest))]
        self._add(chosen, shuffled, count)
        return [self._by_key[key] for key in list(chosen)[:count]]

    def _ranked(self, rest: Sequence[Key], expected: np.ndarray) -> list[Key]:
        """Untried candidates: some neighbours of the best, then as the model ranks them."""
        order = [rest[i] for i in np.argsort(expected, kind="stable")]
        parents = sorted((k for k in self.tried if k in self._by_key), key=self.tried.__getitem__)
        parents = parents[:_PARENTS]
        near = [key for key in order if any(_is_neighbour(key, parent) for parent in parents)]
        # A neighbour in every so many places, the model's favourites between them.
        period = round(1 / _NEIGHBOURS)
        merged: list[Key] = []
        for i, key in enumerate(order):
            if i % (period - 1) == 0 and i // (period - 1) < len(near):
                merged.append(near[i // (period - 1)])
            merged.append(key)
        return merged

    @staticmethod
    def _add(chosen: dict[Key, None], keys: Sequence[Key], up_to: int) -> None:
        for key in keys:
            if len(chosen) >= up_to:
                return
            chosen.setdefault(key)


def _is_neighbour(first: Key, second: Key) -> bool:
    return sum(a != b for a, b in zip(first, second, strict=True)) == 1
