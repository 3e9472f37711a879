"""Weights that are solved for what an activation leaves of a layer's results."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.passes.prune.recovery.least_squares import Moments, Solution, choose_solution
from tinsmith.passes.prune.recovery.through_activation import Part, solve_through

INPUTS, OUTPUTS = 12, 6


def parts(
    groups: int = 1, lower: float = 0.0, upper: float = np.inf, shift: float = 0.0
) -> tuple[Part, ...]:
    """Rows of a layer whose results are linear in its inputs only where they are above 0."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((groups, INPUTS, OUTPUTS)) / 4
    found = []
    for index in range(8):
        x = generator.standard_normal((groups, 200, INPUTS))
        results = x @ weights + shift
        wanted = np.where(results < 0, 4 * results, results)
        found.append(
            Part(x.astype("float32"), wanted.astype("float32"), index % 4 == 1, lower, upper)
        )
    return tuple(found)


Sums = tuple[Moments, Moments, np.ndarray, np.ndarray]


def linear(rows: tuple[Part, ...]) -> tuple[Sums, Solution]:
    """Sums, weights and intercept at hand, and the solution before the activation."""
    fit, check = Moments(), Moments()
    for part in rows:
        (check if part.checks else fit).update(part.inputs, part.wanted)
    groups = len(rows[0].inputs)
    old = np.zeros((groups, INPUTS, OUTPUTS)), np.zeros((groups, OUTPUTS))
    return (fit, check, *old), choose_solution(fit, check, *old, ridges=(1e-3, 1e-2))


def errors(rows: tuple[Part, ...], solution: Solution) -> float:
    assert solution.intercept is not None
    wrong = 0.0
    for part in rows:
        predicted = part.inputs @ solution.weights + solution.intercept[:, None]
        wrong += float(np.square(part.seen(predicted) - part.seen(part.wanted)).sum())
    return wrong


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 0.5)])
def test_less_is_lost_behind_the_activation(groups: int, bounds: tuple[float, float]) -> None:
    rows = parts(groups, *bounds)
    sums, before = linear(rows)
    after = solve_through(lambda: iter(rows), *sums, before)
    assert after.ridge == before.ridge
    assert errors(rows, after) < 0.5 * errors(rows, before)
    assert after.after < after.before


def test_another_tensor_may_be_added_before_the_activation() -> None:
    """What is added moves the bounds of each row."""
    plain = parts()
    added = [np.full_like(part.wanted, 0.25 * index) for index, part in enumerate(plain)]
    moved = tuple(
        Part(part.inputs, part.wanted - more, part.checks, 0.0 - more, np.inf - more)
        for part, more in zip(plain, added, strict=True)
    )
    sums, before = linear(moved)
    after = solve_through(lambda: iter(moved), *sums, before)
    assert errors(moved, after) < 0.8 * errors(moved, before)
    for part, same in zip(plain, moved, strict=True):
        np.testing.assert_allclose(
            part.seen(part.wanted), same.seen(same.wanted) + part.wanted - same.wanted, atol=1e-6
        )


def test_rows_that_are_seen_as_they_should_be_ask_for_nothing() -> None:
    wanted = np.array([[[-1.0], [-1.0], [2.0], [8.0], [8.0]]])
    predicted = np.array([[[-3.0], [1.0], [1.0], [7.0], [5.0]]])
    part = Part(wanted, wanted, False, 0.0, 6.0)
    np.testing.assert_array_equal(part.targets(predicted).ravel(), [-3, 0, 2, 7, 6])


def test_without_bounds_it_is_the_linear_solution() -> None:
    rows = parts(lower=-np.inf)
    sums, before = linear(rows)
    after = solve_through(lambda: iter(rows), *sums, before)
    np.testing.assert_allclose(after.weights, before.weights)
    assert after.after == pytest.approx(before.after, rel=1e-3)


def test_the_weights_at_hand_stay_where_they_are_better_behind_the_activation() -> None:
    """Results are to be far below 0: zeros with no intercept are seen as they should be."""
    rows = parts(shift=-50.0)
    sums, before = linear(rows)
    assert before.ridge is not None
    after = solve_through(lambda: iter(rows), *sums, before)
    assert after.ridge is None and not after.weights.any()
