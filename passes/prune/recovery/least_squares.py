"""Weights of a pruned layer that reproduce what the whole layer computed.

Numpy only. Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks", equation 1 with fixed channels (arXiv:1707.06168), and Luo et al. 2017, "ThiNet",
section 3.2.3 (arXiv:1707.06342); with an intercept, and a ridge towards the weights at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rows that are multiplied together.
_ROWS = 2048


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
        transposed = x.transpose(0, 2, 1)
        # Sums over so few rows are exact enough in float32, and twice as fast.
        products = (transposed @ x, transposed @ y)
        sums = (x.sum(1, dtype=np.float64), y.sum(1, dtype=np.float64), *products,
                np.square(y, dtype=np.float64).sum(1))  # fmt: skip
        self._sums = (
            tuple(old + new for old, new in zip(self._sums, sums, strict=True))
            if self._sums
            else tuple(np.asarray(new, np.float64) for new in sums)
        )


@dataclass(frozen=True)
class Solution:
    """New weights `[groups, K, OC]` and intercept `[groups, OC]` (None without), float64.

    `before` and `after` are the squared errors over the squared targets (less their mean)
    with the old weights, of which the intercept is the best one too, and the new ones.
    """

    weights: np.ndarray
    intercept: np.ndarray | None
    before: float
    after: float


def solve_layer(
    moments: Moments, weights: np.ndarray, ridge: float = 1e-3, intercept: bool = True
) -> Solution:
    """The weights W and intercept b for which sum (y - x W - b)^2 is least.

    `weights` `[groups, K, OC]` are those at hand. `ridge` times the mean of the diagonal of the
    inputs' covariance, times their distance squared from the solution, is added to the
    error, so that what the data do not determine stays as it is.

    Raises ValueError if nothing was observed or the shapes do not fit.
    """
    gram, cross, square = moments.covariances(centred=intercept)
    if cross.shape != weights.shape:
        raise ValueError(f"sums of {cross.shape} do not fit weights of {weights.shape}")
    old = weights.astype(np.float64)
    size = gram.shape[1]
    diagonal = np.einsum("gkk->gk", gram).mean(1)
    # A group whose inputs never vary keeps its weights.
    weight_of_old = np.where(diagonal > 0, ridge * diagonal, 1.0)[:, None, None]
    damped = gram + weight_of_old * np.eye(size)
    new = np.linalg.solve(damped, cross + weight_of_old * old)
    bias = None
    if intercept:
        x, y = moments.means()
        bias = y - np.einsum("gk,gko->go", x, new)

    def error(w: np.ndarray) -> float:
        residual = square - 2 * (w * cross).sum(1) + (w * (gram @ w)).sum(1)
        return float(max(residual.sum(), 0.0) / max(square.sum(), np.finfo(np.float64).tiny))

    return Solution(new, bias, error(old), error(new))
