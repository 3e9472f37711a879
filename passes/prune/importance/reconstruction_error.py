"""Importance by what the layers that read a unit lose, all they could make up for deducted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize.adaptive_rounding import positive_definite_inverse


@dataclass(frozen=True)
class Consumer:
    """A product that reads the units: x @ weights, over data whose second moments are known.

    `covariance` is `[K, K]`, the sum of (x - mean)(x - mean)^T over the data, `weights`
    `[K, OC]`, and `rows` `[units, values]` has the elements of x that belong to each unit.
    """

    covariance: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


# The damping of a covariance that is known well, and the most of any.
_LEAST_DAMPING, _MOST_DAMPING = 1e-3, 0.1


def damping_for(inputs: int, rows: int) -> float:
    """How much to damp a covariance of so many inputs that so many rows were summed up for.

    Few rows make inputs look as if they could stand for each other: what is right grows with
    the inputs over the rows. Source: Ledoit and Wolf 2004, "A Well-Conditioned Estimator for
    Large-Dimensional Covariance Matrices", section 2.
    """
    return min(max(inputs / max(rows, 1), _LEAST_DAMPING), _MOST_DAMPING)


class _Elimination:
    """The units of one consumer that are left, and the best weights for them."""

    def __init__(self, consumer: Consumer, damping: float) -> None:
        units, self._values = consumer.rows.shape
        order = consumer.rows.ravel()
        hessian = consumer.covariance[np.ix_(order, order)].astype(np.float64)
        weights = consumer.weights[order].astype(np.float64)
        # W W^T is all that is needed of the weights W, however many outputs there are.
        self._products = weights @ weights.T
        # Relative to the whole output, so that consumers of one group weigh the same.
        energy = float(np.sum(self._products * hessian))
        self._energy = energy if energy > 0 else 1.0
        mean = float(np.diag(hessian).mean())
        # Inputs that never vary cost nothing; the constant keeps the matrix invertible.
        hessian[np.diag_indices(len(order))] += damping * mean if mean > 0 else 1.0
        self._inverse = positive_definite_inverse(hessian)
        self._left = units

    def errors(self) -> np.ndarray:
        """The relative error that each unit's removal would add, all others adapting, `[left]`."""
        if self._values == 1:
            left = slice(self._left)
            return np.asarray(
                self._products.diagonal()[left] / self._inverse.diagonal()[left] / self._energy
            )
        rows = np.arange(self._left * self._values).reshape(self._left, self._values)
        blocks = (rows[:, :, None], rows[:, None, :])
        solved = np.linalg.solve(self._inverse[blocks], self._products[blocks])
        return np.asarray(np.trace(solved, axis1=1, axis2=2) / self._energy)

    def remove(self, position: int) -> None:
        """Remove the unit at a position; the others adapt, and the last one takes its place."""
        from scipy.linalg import solve  # late: whoever does not prune needs none

        values, size = self._values, self._left * self._values
        gone = slice(position * values, (position + 1) * values)
        last = slice(size - values, size)
        column = self._inverse[:size, gone].copy()
        spread = solve(column[gone], column.T, assume_a="pos").T
        products = self._products[:size, gone] - spread @ self._products[gone, gone] / 2
        # One product for what is symmetric: spread products^T + products spread^T.
        self._products[:size, :size] -= (
            np.hstack((spread, products)) @ np.hstack((products, spread)).T
        )
        self._inverse[:size, :size] -= spread @ column.T
        for matrix in (self._inverse, self._products):
            matrix[gone, :size] = matrix[last, :size]
            matrix[:size, gone] = matrix[:size, last]
        self._left -= 1


def reconstruction_error(
    consumers: Sequence[Consumer], share: float = 1.0, damping: float = 1e-3
) -> np.ndarray:
    """The error in what consumers compute once a unit and all before it are gone, `[units]`.

    Units are removed one after the other: always the one whose removal adds the least squared
    error to the outputs of all consumers together, given that the weights of the remaining
    units are then solved for anew. With the inverse H of a consumer's covariance and its
    weights W, a unit with the elements b of x adds trace(W_b^T (H_bb)^-1 W_b). A unit's score
    is the sum of what was added until it was gone, so units that stand for each other
    do not both go first. Only a `share` of the units is removed in turn, and the others
    are ranked by what each would add then. `damping` times the mean of the
    covariance's diagonal is added to it.

    Source: Hassibi and Stork 1993, "Optimal Brain Surgeon", equation 5, for blocks of
    weights as in Kurtic et al. 2023, "ZipLM", equation 3 (arXiv:2302.04089).

    Raises ValueError without consumers, or if their units or shapes do not fit.
    """
    counts = {len(consumer.rows) for consumer in consumers}
    if len(counts) != 1:
        raise ValueError(f"consumers of one group have the same units, not {sorted(counts)}")
    for consumer in consumers:
        inputs = len(consumer.weights)
        if consumer.covariance.shape != (inputs, inputs) or consumer.rows.size != inputs:
            raise ValueError(f"a covariance of {consumer.covariance.shape} and {consumer.rows.size}"
                             f" elements do not fit weights of {inputs} inputs")  # fmt: skip
    units = counts.pop()
    states = [_Elimination(consumer, damping) for consumer in consumers]
    scores = np.zeros(units)
    left = np.arange(units)
    total = 0.0
    removed = min(round(share * units), units - 1)
    for _ in range(removed):
        errors = np.sum([state.errors() for state in states], axis=0)
        position = int(errors.argmin())
        total += float(errors[position])
        scores[left[position]] = total
        left[position] = left[-1]
        left = left[:-1]
        for state in states:
            state.remove(position)
    scores[left] = total + np.sum([state.errors() for state in states], axis=0)
    return scores
