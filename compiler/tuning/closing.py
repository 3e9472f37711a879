"""How long the end of a job takes, and what of it a short job can afford."""

from __future__ import annotations

from dataclasses import dataclass

# How many of the fastest candidates of each kernel are timed in the model, and for how long.
_CONFIRMED = 3
_SECONDS = (1.0, 4.0)
# One comparison of whole models, besides building one: checking it, timing both in new processes.
_COMPARISON_SECONDS = 6.0
_COMPARISONS = 3
# The end of a job may take that share of it if it must, and no more than that if it can.
_MOST_SHARE = 0.5
_USUAL_SHARE = 0.25


@dataclass(frozen=True)
class Confirmation:
    """How many of the fastest candidates are timed in the model, and the seconds of timing."""

    candidates: int
    seconds: float


def seconds_to_reserve(whole: float, build_seconds: float) -> float:
    """What of a job of `whole` seconds is kept for its end, where a model builds so fast."""
    least = 2 * build_seconds + _SECONDS[0] + _COMPARISON_SECONDS
    full = (_CONFIRMED + 1) * build_seconds + _SECONDS[1] + _COMPARISONS * _COMPARISON_SECONDS
    return min(full, max(least, _USUAL_SHARE * whole), _MOST_SHARE * whole)


def confirmation(left: float, build_seconds: float) -> Confirmation:
    """What can be confirmed in the `left` seconds of a job, before whole models are compared."""
    free = left - build_seconds - _COMPARISON_SECONDS
    seconds = min(max(0.2 * free, _SECONDS[0]), _SECONDS[1])
    affordable = (free - seconds) / max(build_seconds, 1e-3)
    return Confirmation(int(min(max(affordable, 1), _CONFIRMED)), seconds)
