"""How far a quantised or pruned module is from the float model that it was made of.

Such a module computes something else by design, so the tolerance of a float module says nothing
about it. When it is compiled, its golden outputs are compared with the float model's on the same
inputs, and that distance is kept in the manifest: the promise that `tinsmith verify` holds it to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinsmith.compiler.evaluate.compare import TOLERANCE, compare
from tinsmith.compiler.quantization.noise import SignalToNoise

# Another version of the reference rounds in another way: decibels that a promise may be missed by.
_SLACK_DB = 1.0
# The same for the share of equal integers.
_SLACK = 0.02

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Distance:
    """One output beside the float model's.

    `sqnr_db` is the ratio of signal and noise of floats, infinite where nothing differs; `equal`
    the share of equal integers or booleans. `promised` is the same when the module was compiled,
    None where nothing is promised: `agrees` is None then, too.
    """

    name: str
    sqnr_db: float | None
    equal: float | None
    promised: float | None = None
    agrees: bool | None = None

    @property
    def told(self) -> str:
        """The distance in words."""
        return told(self.sqnr_db, self.equal)

    @property
    def promise_told(self) -> str:
        """The promise in words; empty without one."""
        if self.promised is None:
            return ""
        return told(self.promised, None) if self.equal is None else told(None, self.promised)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite ratio is null."""
        key = "sqnr_db" if self.equal is None else "equal"
        value = self.sqnr_db if self.equal is None else self.equal
        return {
            "tensor": self.name,
            key: _finite(value),
            f"promised_{key}": _finite(self.promised),
            "agrees": self.agrees,
        }


def told(sqnr_db: float | None, equal: float | None) -> str:
    """`41.3 dB`, `exact`, or `99.8% equal`."""
    if equal is not None:
        return f"{equal:.1%} equal"
    if sqnr_db is None or math.isinf(sqnr_db):
        return "exact"
    return f"{sqnr_db:.1f} dB"


def measure(actual: Arrays, expected: Arrays) -> dict[str, dict[str, float | None]]:
    """By output, how far `actual` is from the float model's `expected`, as the manifest has it.

    `{"sqnr_db": 41.3}` of floats (None: nothing differs), `{"equal": 0.99}` of all else. An
    output of NaNs is left out.
    """
    result: dict[str, dict[str, float | None]] = {}
    for name, reference in expected.items():
        if reference.dtype.kind in "biu":
            same = actual[name] == reference
            result[name] = {"equal": float(same.mean()) if same.size else 1.0}
            continue
        noise = SignalToNoise()
        noise.update(reference, actual[name])
        if not math.isnan(noise.decibels):
            result[name] = {"sqnr_db": _finite(noise.decibels)}
    return result


def judge(actual: Arrays, expected: Arrays, promises: Mapping[str, Any] | None) -> list[Distance]:
    """The distance of each output, and whether it keeps its promise, where one was made.

    Nothing that is as near as a float module has to be breaks a promise.
    """
    result = []
    for name, found in measure(actual, expected).items():
        sqnr_db = math.inf if found.get("sqnr_db", 0.0) is None else found.get("sqnr_db")
        distance = Distance(name, sqnr_db, found.get("equal"))
        promise = (promises or {}).get(name)
        if isinstance(promise, Mapping):
            distance = _judged(distance, promise, actual[name], expected[name])
        result.append(distance)
    return result


def _judged(
    distance: Distance, promise: Mapping[str, Any], actual: np.ndarray, expected: np.ndarray
) -> Distance:
    if distance.equal is not None:
        share = float(promise.get("equal") or 0.0)
        kept = distance.equal >= share - _SLACK
        return Distance(distance.name, None, distance.equal, share, kept)
    given = promise.get("sqnr_db")
    level = math.inf if given is None else float(given)
    sqnr_db = math.inf if distance.sqnr_db is None else distance.sqnr_db
    kept = sqnr_db >= level - _SLACK_DB or compare("", actual, expected, TOLERANCE).agrees
    return Distance(distance.name, sqnr_db, None, level, kept)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
