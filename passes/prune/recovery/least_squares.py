"""Weights of a pruned layer that reproduce what the whole layer computed.

Numpy only. Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks", equation 1 with fixed channels (arXiv:1707.06168), and Luo et al. 2017, "ThiNet",
section 3.2.3 (arXiv:1707.06342); with an intercept, and a ridge towards the weights at hand,
chosen on other rows than the solution is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How strongly weights are kept, in rising order: which does best depends on the layer.
RIDGES = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)
# Rows that are multiplied together.
_ROWS = 2048
# The share of the mean square below which a variance is rounding.
_ROUNDING = 1e-12


class Moments:
    """Sums over rows x of inputs and y of targets, from which y = x W + b is solved for.

    Rows come in parts: `[groups, rows, K]` and `[groups, rows, OC]`, where each group has
    weights of its own (a dense layer is one group). Memory does not depend on their number.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._sums: tuple[np.ndarray, ...] = ()

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Take rows into account; raises ValueError unless there are as many of both."""
        if inputs.shape[:2] != targets.shape[:2]:
            raise ValueError(f"inputs of {inputs.shape} and targets of {targets.shape}")
        # Copies: whoever runs the model may fill the arrays again.
        self._pending.append((np.array(inputs, np.float32), np.array(targets, np.float32)))
        self.count += inputs.shape[1]
        if sum(x.shape[1] for x, _ in self._pending) >= _ROWS:
            self._multiply()

    def joined(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        both = Moments()
        both.count = self.count + other.count
        parts = [moments._totals() for moments in (self, other) if moments.count]
        both._sums = tuple(sum(sums[1:], sums[0]) for sums in zip(*parts, strict=True))
        return both

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Of inputs `[groups, K]` and of targets `[groups, OC]`, float64.

        Raises ValueError if nothing was observed, as the other sums do.
        """
        x, y, *_ = self._totals()
        return x / self.count, y / self.count

    def covariances(self, centred: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of x^T x `[groups, K, K]`, x^T y `[groups, K, OC]` and y^2 `[groups, OC]`, float64.

        With `centred`, of x and y less their means.
        """
        x, y, gram, cross, square = self._totals()
        if not centred:
            return gram, cross, square
        count = self.count
        return (
            gram - x[:, :, None] * x[:, None, :] / count,
            cross - x[:, :, None] * y[:, None, :] / count,
            square - y * y / count,
        )

    def _totals(self) -> tuple[np.ndarray, ...]:
        self._multiply()
        if not self._sums:
            raise ValueError("no sample was observed")
        return self._sums

    def _multiply(self) -> None:
        """Add up the rows that wait: of many at once, adding K * K costs less."""
        if not self._pending:
            return
        x = np.concatenate([inputs for inputs, _ in self._pending], axis=1)
        y = np.concatenate([targets for _, targets in self._pending], axis=1)
        self._pending = []
        total, wanted = x.sum(1, dtype=np.float64), y.sum(1, dtype=np.float64)
        # Less their means, sums over so few rows are exact enough in float32, and twice as fast.
        mean, middle = (sums / x.shape[1] for sums in (total, wanted))
        x -= mean[:, None].astype(np.float32)
        y_squares = np.square(y, dtype=np.float64).sum(1)
        y -= middle[:, None].astype(np.float32)
        transposed = x.transpose(0, 2, 1)
        products = (
            (transposed @ x) + mean[:, :, None] * total[:, None, :],
            (transposed @ y) + mean[:, :, None] * wanted[:, None, :],
        )
        sums = (total, wanted, *products, y_squares)
        self._sums = (
            tuple(old + new for old, new in zip(self._sums, sums, strict=True))
            if self._sums
            else tuple(np.asarray(new, np.float64) for new in sums)
        )


@dataclass(frozen=True)
class Solution:
    """New weights `[groups, K, OC]` and intercept `[groups, OC]` (None without), float64.

    `before` and `after` are the squared errors over the squared targets (less their mean) on the
    rows to check by, with the old weights and intercept and with these. `ridge` is the one that was
    chosen: infinite if only the intercept is new, None if nothing is, because solving did not help.
    """

    weights: np.ndarray
    intercept: np.ndarray | None
    before: float
    after: float
    ridge: float | None


def solve_layer(
    moments: Moments, weights: np.ndarray, ridge: float = 1e-1, intercept: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """The weights W and intercept b for which sum (y - x W - b)^2 is least.

    `weights` `[groups, K, OC]` are those at hand. `ridge` times the mean of the diagonal of the
    inputs' covariance, times their distance squared from the solution, is added to the
    error, so that what the data do not determine stays as it is; with an infinite one they stay
    and b is solved for. b is None without `intercept`.

    Raises ValueError if nothing was observed or the shapes do not fit.
    """
    from scipy.linalg import solve  # late: whoever does not prune needs none

    gram, cross, _ = moments.covariances(centred=intercept)
    if cross.shape != weights.shape:
        raise ValueError(f"sums of {cross.shape} do not fit weights of {weights.shape}")
    new: np.ndarray = weights.astype(np.float64)
    if np.isfinite(ridge):
        diagonal = np.einsum("gkk->gk", gram).mean(1)
        # A group whose inputs never vary, but for rounding, keeps its weights.
        squares = np.einsum("gkk->gk", moments.covariances(centred=False)[0]).mean(1)
        varies = diagonal > _ROUNDING * squares
        weight_of_old = np.where(varies, ridge * diagonal, np.maximum(squares, 1.0))[:, None, None]
        wanted = cross + weight_of_old * new
        damped = gram + weight_of_old * np.eye(gram.shape[1])
        if len(damped) == 1:
            new = solve(damped[0], wanted[0], assume_a="pos", check_finite=False)[None]
        else:
            new = np.linalg.solve(damped, wanted)
    if not intercept:
        return new, None
    x, y = moments.means()
    return new, y - np.einsum("gk,gko->go", x, new)


def error_of(moments: Moments, weights: np.ndarray, intercept: np.ndarray | None) -> float:
    """sum (y - x W - b)^2 over the sum of y^2, of y less its mean if there is an intercept."""
    gram, cross, square = moments.covariances(centred=intercept is not None)
    residual = square - 2 * (weights * cross).sum(1) + (weights * (gram @ weights)).sum(1)
    if intercept is not None:
        x, y = moments.means()
        shift = y - np.einsum("gk,gko->go", x, weights) - intercept
        residual = residual + moments.count * shift**2
    return float(max(residual.sum(), 0.0) / max(square.sum(), np.finfo(np.float64).tiny))


def choose_solution(
    fit: Moments,
    check: Moments,
    weights: np.ndarray,
    intercept: np.ndarray | None,
    ridges: Sequence[float] = RIDGES,
) -> Solution:
    """The solution by the ridge that does best on rows that it was not solved for.

    `weights` and `intercept` `[groups, OC]` are those at hand; they stay where no solution is
    better on the rows of `check`, or with `check` empty by the middle one of `ridges`. What is
    chosen is solved for on all rows. Ridges, in rising order, are tried from the middle on while
    they get better.
    """
    old = weights.astype(np.float64)
    everything = fit.joined(check)
    middle = len(ridges) // 2
    if not check.count or not fit.count:
        new, bias = solve_layer(everything, old, ridges[middle], intercept is not None)
        before = error_of(everything, old, intercept)
        return Solution(new, bias, before, error_of(everything, new, bias), ridges[middle])

    def tried(ridge: float) -> float:
        return error_of(check, *solve_layer(fit, old, ridge, intercept is not None))

    before = error_of(check, old, intercept)
    errors: dict[float | None, float] = {None: before, ridges[middle]: tried(ridges[middle])}
    for direction in (1, -1):
        place = middle + direction
        while 0 <= place < len(ridges):
            errors[ridges[place]] = tried(ridges[place])
            if errors[ridges[place]] >= errors[ridges[place - direction]]:
                break
            place += direction
        if place != middle + direction:
            break  # it got better in this direction
    if intercept is not None:
        errors[np.inf] = tried(np.inf)
    best = min(errors, key=lambda ridge: errors[ridge])
    if best is None:
        return Solution(old, intercept, before, before, None)
    new, bias = solve_layer(everything, old, best, intercept is not None)
    return Solution(new, bias, before, errors[best], best)
