"""What a search found out: trials and records, checked when they are read.

A record names the best decisions for one workload. It is data: no code and no
schedule, only the integers that `Template.apply` takes, so that it can be
replayed wherever the same version of the template is. Files come from
elsewhere, so that every field is checked before it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tinsmith.targets.template import Decisions

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

# The template whose one decision is the algorithm of a convolution.
ALGORITHM = "algorithm"
# What the provenance of a record tells of a search that is not over.
SEARCH, UNFINISHED = "search", "unfinished"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORKLOAD = re.compile(r"[0-9a-f]{16}")
_MOST_DECISIONS = 32
_MOST_NUMBERS = 64
_MOST_TEXT = 500
_LARGEST = 2**31 - 1


@dataclass(frozen=True, order=True)
class Subject:
    """What decisions are for: a workload, scheduled by one version of a template."""

    template: str
    version: int
    workload: str


@dataclass(frozen=True)
class Trial:
    """One measurement of a candidate, or the reason why there is none.

    `seconds` are those of one call, `default_seconds` those of the template's default in the
    same batch; with `failure` both mean nothing, and the candidate is not tried again.
    """

    subject: Subject
    decisions: Decisions
    seconds: float = 0.0
    default_seconds: float = 0.0
    failure: str = ""

    @property
    def ratio(self) -> float:
        """The time relative to the default: below 1 is faster. Infinite for a failure."""
        return math.inf if self.failure else self.seconds / self.default_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `parse_trial` gives the same trial back."""
        times = {"seconds": self.seconds, "default_seconds": self.default_seconds}
        return _identity(self.subject, self.decisions) | (
            {"failure": self.failure} if self.failure else times
        )


@dataclass(frozen=True)
class Record:
    """The best decisions known for a workload; a `ratio` of 1 means that the default won.

    `trials` is the number of candidates it was chosen from. `provenance` says in plain
    text where it comes from: kernel, model, processor, date, version of Tinsmith.
    """

    subject: Subject
    decisions: Decisions
    seconds: float
    default_seconds: float
    trials: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The time relative to the template's default."""
        return self.seconds / self.default_seconds

    @property
    def is_early(self) -> bool:
        """Whether it was written before its search was over: the next job searches on."""
        return self.provenance.get(SEARCH) == UNFINISHED

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `parse_record` gives the same record back."""
        return _identity(self.subject, self.decisions) | {
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "trials": self.trials,
            "provenance": dict(self.provenance),
        }


def workload_key(function: PrimFunc) -> str:
    """A name for what a fused function computes: 16 hexadecimal digits.

    The structural hash of the function without its name: equal for equal kernels of any
    model and process, as long as TVM is the same version.
    """
    import tvm_ffi

    if function.attrs is not None and "global_symbol" in function.attrs:
        function = function.without_attr("global_symbol")
    return f"{tvm_ffi.structural_hash(function) % 2**64:016x}"


def decisions_key(decisions: Decisions) -> tuple[tuple[str, int], ...]:
    """Equal for equal decisions."""
    return tuple(sorted(decisions.items()))


def parse_trial(data: Mapping[str, Any]) -> Trial | None:
    """The trial that `to_dict` wrote; None if `data` is anything else."""
    identity = _parse_identity(data)
    if identity is None:
        return None
    failure = data.get("failure", "")
    if failure:
        told = isinstance(failure, str) and len(failure) <= _MOST_TEXT
        return Trial(*identity, failure=failure) if told else None
    times = _times(data)
    return Trial(*identity, *times) if times is not None else None


def parse_record(data: Mapping[str, Any]) -> Record | None:
    """The record that `to_dict` wrote; None if `data` is anything else."""
    identity, times = _parse_identity(data), _times(data)
    trials, provenance = data.get("trials"), data.get("provenance")
    if identity is None or times is None or not _is_count(trials):
        return None
    if not isinstance(provenance, dict) or len(provenance) > _MOST_DECISIONS:
        return None
    if not all(
        isinstance(key, str) and _is_name(key) and isinstance(value, str)
        for key, value in provenance.items()
    ):
        return None
    told = {key: _printable(value) for key, value in provenance.items()}
    return Record(*identity, *times, trials=int(trials or 0), provenance=told)


def parse_workload(data: Mapping[str, Any]) -> tuple[str, dict[str, int]] | None:
    """The key of a workload and the numbers that describe it; None if `data` is anything else."""
    key, numbers = data.get("workload"), data.get("numbers")
    if not isinstance(key, str) or not _WORKLOAD.fullmatch(key) or not isinstance(numbers, dict):
        return None
    valid = len(numbers) <= _MOST_NUMBERS and all(
        isinstance(name, str) and _is_name(name) and _is_integer(value, 2**62)
        for name, value in numbers.items()
    )
    return (key, numbers) if valid else None


def _identity(subject: Subject, decisions: Decisions) -> dict[str, Any]:
    return {
        "template": subject.template,
        "version": subject.version,
        "workload": subject.workload,
        "decisions": dict(decisions),
    }


def _parse_identity(data: Mapping[str, Any]) -> tuple[Subject, dict[str, int]] | None:
    template, version = data.get("template"), data.get("version")
    workload, decisions = data.get("workload"), data.get("decisions")
    if not isinstance(template, str) or not _is_name(template) or not _is_count(version):
        return None
    if not isinstance(workload, str) or not _WORKLOAD.fullmatch(workload):
        return None
    if not isinstance(decisions, dict) or len(decisions) > _MOST_DECISIONS:
        return None
    if not all(
        isinstance(key, str) and _is_name(key) and _is_count(value)
        for key, value in decisions.items()
    ):
        return None
    return Subject(template, int(version or 0), workload), decisions


def _times(data: Mapping[str, Any]) -> tuple[float, float] | None:
    times = [data.get("seconds"), data.get("default_seconds")]
    valid = all(
        isinstance(time, (int, float)) and not isinstance(time, bool) and 0 < time < 1e6
        for time in times
    )
    return (float(times[0] or 0), float(times[1] or 0)) if valid else None


@lru_cache(maxsize=1024)
def _is_name(text: str) -> bool:
    """Whether a text is a name of ours: the same few stand in every line of a store."""
    return _NAME.fullmatch(text) is not None


def _is_count(value: object) -> bool:
    return _is_integer(value, _LARGEST)


def _is_integer(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _printable(text: str) -> str:
    """Text that cannot move a terminal's cursor."""
    shown = text[:_MOST_TEXT]
    return shown if shown.isprintable() else "".join(filter(str.isprintable, shown))
