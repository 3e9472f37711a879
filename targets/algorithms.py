"""Choosing between algorithms for one operator: what a search may try and a record may say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
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
    def described(self, workload: Any) -> str:
        """The direct algorithm's workload in a few words."""

    @abstractmethod
    def computed_by(self, workload: Any) -> tuple[Hashable, str] | None:
        """The direct algorithm's workload of what a kernel computes, and by which algorithm."""
