"""Weights of a pruned layer that reproduce what is left of its results behind an activation.

Numpy only. Of what a rectifier makes 0 only the sign matters: least squares of the results
before it spend most of their freedom on values that nothing reads. Source: Zhang et al. 2015,
"Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.2
(arXiv:1505.06798); instead of their penalty each step minimises a bound of the error that touches
it (Hunter and Lange 2004, "A Tutorial on MM Algorithms").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tinsmith.passes.prune.recovery.least_squares import RIDGES, Moments, Solution, solve_layer

# Steps after the first solution, at most, and the share of the error that one has to save.
_STEPS = 3
_LEAST_GAIN = 0.005


@dataclass(frozen=True)
class Part:
    """Rows of a layer: `inputs` `[groups, rows, K]`, and `wanted` `[groups, rows, OC]`.

    The activation lets pass what lies between `lower` and `upper`, each of which broadcasts
    against `wanted` (another tensor may be added before it). Rows that only check are not
    solved for.
    """

    inputs: np.ndarray
    wanted: np.ndarray
    checks: bool
    lower: np.ndarray | float = -np.inf
    upper: np.ndarray | float = np.inf

    def seen(self, results: np.ndarray) -> np.ndarray:
        """What the activation leaves of results."""
        return np.clip(results, self.lower, self.upper)

    def targets(self, predicted: np.ndarray) -> np.ndarray:
        """What rows that give `predicted` are to give: itself where it is seen as it should be."""
        below = (self.wanted <= self.lower) & (predicted <= self.lower)
        above = (self.wanted >= self.upper) & (predicted >= self.upper)
        return np.where(below | above, predicted, self.seen(self.wanted))


def solve_through(
    parts: Callable[[], Iterable[Part]],
    fit: Moments,
    check: Moments,
    weights: np.ndarray,
    intercept: np.ndarray,
    linear: Solution,
) -> Solution:
    """The solution that does best behind the activation, from `linear`, which is the best before.

    `parts` gives all rows, each time anew; `fit` and `check` are the sums over those to solve for
    and over the others. `weights` `[groups, K, OC]` and `intercept` `[groups, OC]` are those at
    hand; they stay where no solution errs less on the rows to check by. The ridge is that of
    `linear`, the strongest if it keeps the weights. `before` and `after` are squared errors
    behind the activation over the squares of what is seen, less its mean.
    """
    ridge = RIDGES[-1] if linear.ridge is None else linear.ridge
    old = weights.astype(np.float64)
    before = _Pass(parts(), old, intercept, learns=False).error
    least, best, made_of = np.inf, (fit, check), (fit, check)
    for step in range(_STEPS + 1):
        new, bias = solve_layer(made_of[0], old, ridge)
        found = _Pass(parts(), new, bias, learns=step < _STEPS)
        if found.error > (1 - _LEAST_GAIN) * least:
            break
        least, best, made_of = found.error, made_of, (found.fit, found.check)
    if before <= least:
        return Solution(old, intercept, before, before, None)
    new, bias = solve_layer(best[0].joined(best[1]), old, ridge)
    return Solution(new, bias, before, least, ridge)


class _Pass:
    """One look at all rows with certain weights.

    `error` is that of the rows that check; `fit` and `check` are the sums for the next step,
    empty unless it `learns`.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        weights: np.ndarray,
        intercept: np.ndarray | None,
        learns: bool,
    ) -> None:
        self.fit, self.check = Moments(), Moments()
        matrix, shift = weights.astype(np.float32), np.zeros((), np.float32)
        if intercept is not None:
            shift = intercept.astype(np.float32)[:, None]
        wrong, squares, count = 0.0, 0.0, 0
        total: np.ndarray | float = 0.0
        for part in parts:
            if not (learns or part.checks):
                continue
            predicted = part.inputs @ matrix + shift
            if learns:
                sums = self.check if part.checks else self.fit
                sums.update(part.inputs, part.targets(predicted))
            if part.checks:
                seen = part.seen(part.wanted).astype(np.float64)
                wrong += float(np.square(part.seen(predicted) - seen).sum())
                squares += float(np.square(seen).sum())
                total = total + seen.sum(1)
                count += seen.shape[1]
        spread = squares - float(np.square(total).sum()) / max(count, 1)
        self.error = wrong / max(spread, np.finfo(np.float64).tiny)
