"""What a schedule template is, and what is said of a kernel that one has scheduled.

A template owns one kernel family. It receives a fused `PrimFunc` as `FuseTIR`
leaves it (sblocks, static shapes), decides whether the function is of its
family, and rewrites it into loops that run well on a `TargetSpec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tinsmith.targets.spec import TargetSpec

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

Decisions = Mapping[str, int]

# Block annotation by which an operator definition tells its template the workload.
WORKLOAD_ATTRIBUTE = "tinsmith.workload"
# Function attribute by which a definition that has loops already names its template.
TEMPLATE_ATTRIBUTE = "tinsmith.template"


@dataclass(frozen=True)
class Match:
    """A function that a template can schedule.

    `workload` is whatever the template needs to know (a frozen dataclass of its
    own); `flops` counts multiplications and additions of one call, `bytes` the
    compulsory traffic of one call (inputs, weights and outputs, once each).
    """

    workload: Any
    flops: int
    bytes: int

    @property
    def arithmetic(self) -> str:
        """What is multiplied or compared: an arithmetic or a dtype; empty if it is not stated."""
        stated = getattr(self.workload, "arithmetic", None) or getattr(self.workload, "dtype", "")
        return str(stated)


# The source of decisions where a record has others than the template would choose from.
UNFIT = "default (record does not fit)"


@dataclass(frozen=True)
class KernelReport:
    """How one kernel of a module was scheduled; `arithmetic` is that of its `Match`."""

    name: str
    template: str
    template_version: int
    decisions: Mapping[str, int]
    source: str  # "default", "record", or UNFIT: the default in the place of a record
    flops: int
    bytes: int
    arithmetic: str = ""


class Template(ABC):
    """One kernel family: recognises it, and schedules it from a few integer decisions."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        """The workload of `function`, or None if it is not of this family."""

    @abstractmethod
    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        """Decisions that are good without any search."""

    @abstractmethod
    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        """For each decision, the values that a search may choose from."""

    def has(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        """Whether it would choose these decisions itself: records may come from anywhere."""
        default, space = self.default(match, spec), self.space(match, spec)
        return set(decisions) == set(default) and all(
            value == default[name] or value in space.get(name, ())
            for name, value in decisions.items()
        )

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        """Whether these values of `space` may be good together, as far as can be told untried."""
        return True

    def sums_products(self, match: Match) -> bool:
        """Whether each element read is a factor of many products of floating-point numbers."""
        return False

    def entries_first(self, match: Match, decisions: Decisions) -> Decisions:
        """These decisions with an order of tasks in which entries of a batch follow each other.

        A kernel with such an order can end early, where fewer entries are asked for; blocks that
        reach across entries cost what they compute of the others.
        """
        return decisions

    @abstractmethod
    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        """The scheduled function: same parameters, same results."""
