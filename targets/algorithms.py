"""Choosing between algorithms for one operator: what a search may try and a record may say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from tinsmith.targets.spec import TargetSpec

# The algorithm that every operator has.
DIRECT = "direct"


class AlgorithmLookup(Protocol):
    """Where the algorithms that earlier searches found best are looked up."""

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        """A name of `Algorithms`, or None if nothing is known; `workload` is the direct one's."""


class DirectOnly:
    """The lookup that leaves every operator direct."""

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        return DIRECT


class ForBatch:
    """The lookup that decides for one batch of a range what is compiled for the largest, `bound`.

    What a small batch has too few pixels for would be computed for all of a large one.
    """

    def __init__(
        self, known: AlgorithmLookup | None, algorithms: Algorithms, batch: int, bound: int
    ) -> None:
        self._known = known
        self._algorithms = algorithms
        self._batch, self._bound = batch, bound

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        entry: Any = workload
        if entry.batch % self._bound == 0:
            entry = replace(entry, batch=entry.batch // self._bound * self._batch)
        found = None if self._known is None else self._known.find(entry, spec)
        return found or self._algorithms.by_rule(entry, spec)


class Algorithms(ABC):
    """The algorithms of one family.

    `codes` are their names with the numbers that records keep, that of `DIRECT` first.
    `version` is raised when one of them becomes so much faster that earlier choices mean
    nothing.
    """

    codes: ClassVar[Mapping[str, int]]
    version: ClassVar[int]

    @abstractmethod
    def have_choice(self, workload: Any) -> bool:
        """Whether more than the direct algorithm may pay for a workload that it has asked for."""

    @abstractmethod
    def by_rule(self, workload: Any, spec: TargetSpec) -> str:
        """The algorithm of a workload that no search has decided."""

    @abstractmethod
    def described(self, workload: Any) -> str:
        """The direct algorithm's workload in a few words."""

    @abstractmethod
    def computed_by(self, workload: Any) -> tuple[Hashable, str] | None:
        """The direct algorithm's workload of what a kernel computes, and by which algorithm."""
