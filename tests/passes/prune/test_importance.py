"""Each criterion against its definition written out, and scores of groups on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.passes.prune.importance.apoz import ActiveShare
from tinsmith.passes.prune.importance.batch_norm_scale import scale_magnitude
from tinsmith.passes.prune.importance.geometric_median import distance_to_others
from tinsmith.passes.prune.importance.l1 import l1_norm
from tinsmith.passes.prune.importance.l2 import l2_norm
from tinsmith.passes.prune.importance.mean_activation import MeanActivation
from tinsmith.passes.prune.importance.normalization import NORMALIZATIONS, normalized
from tinsmith.passes.prune.importance.random_baseline import random_scores
from tinsmith.passes.prune.importance.reconstruction_error import (
    Consumer,
    damping_for,
    reconstruction_error,
)
from tinsmith.passes.prune.importance.taylor import taylor_of_activations, taylor_of_weights

FIRST = np.array([[3.0, -4.0], [0.0, 1.0], [-1.0, -1.0]], np.float32)
SECOND = np.array([[1.0], [-2.0], [0.0]], np.float32)


def test_l1_adds_absolute_weights_of_all_constants() -> None:
    np.testing.assert_allclose(l1_norm([FIRST, SECOND]), [8, 3, 2])


def test_l2_is_the_norm_of_all_weights_of_a_unit() -> None:
    np.testing.assert_allclose(l2_norm([FIRST, SECOND]), np.sqrt([26, 5, 2]))


def test_distance_to_others_is_least_at_the_middle() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], np.float32)
    np.testing.assert_allclose(distance_to_others([rows]), [6, 5, 9])


def test_scales_count_by_magnitude() -> None:
    np.testing.assert_allclose(scale_magnitude([FIRST]), [7, 1, 2])


def test_random_scores_are_reproducible() -> None:
    np.testing.assert_array_equal(random_scores(7, 3), random_scores(7, 3))
    assert len(np.unique(random_scores(7, 3))) == 7
    assert not np.array_equal(random_scores(7, 3), random_scores(7, 4))


def test_activations_are_observed_in_a_stream() -> None:
    generator = np.random.default_rng(0)
    arrays = [np.maximum(generator.standard_normal((2, 5, 3, 3)), 0) for _ in range(3)]
    whole = np.concatenate(arrays)
    mean, active = MeanActivation(axis=1), ActiveShare(axis=1)
    for array in arrays:
        mean.update(-array)
        active.update(array)
    np.testing.assert_allclose(mean.scores, whole.mean((0, 2, 3)))
    np.testing.assert_allclose(active.scores, 1 - (whole == 0).mean((0, 2, 3)))


def test_nothing_observed_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        _ = ActiveShare(axis=-1).scores


def test_taylor_predicts_what_a_linear_loss_loses() -> None:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4, 6))
    gradients = generator.standard_normal((4, 6))
    # The loss sum(gradients * weights) changes by exactly its first-order term.
    loss = (weights * gradients).sum()
    without = [np.delete(weights * gradients, unit, 0).sum() for unit in range(4)]
    np.testing.assert_allclose(
        taylor_of_weights([weights], [gradients]), np.square(loss - np.array(without))
    )
    np.testing.assert_allclose(
        taylor_of_activations([weights, -weights], [gradients, gradients]),
        np.abs(loss - np.array(without)),
    )


def test_taylor_refuses_gradients_of_another_shape() -> None:
    with pytest.raises(ValueError, match="gradient"):
        taylor_of_weights([FIRST], [SECOND])


def test_reconstruction_error_is_that_of_least_squares() -> None:
    """Two consumers, two values for each unit: the scores are errors of solving anew."""
    generator = np.random.default_rng(0)
    rows = np.stack([np.arange(6), np.arange(6, 12)], axis=1)
    consumers, data = [], []
    for _ in range(2):
        x = generator.standard_normal((200, 12)) @ generator.standard_normal((12, 12))
        x -= x.mean(0)
        weights = generator.standard_normal((12, 4))
        consumers.append(Consumer(x.T @ x, weights, rows))
        data.append((x, x @ weights))
    scores = reconstruction_error(consumers, damping=1e-12)
    order = np.argsort(scores)
    for gone in range(1, 6):
        kept = rows[order[gone:]].ravel()
        errors = []
        for x, y in data:
            solution = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
            errors.append(np.square(y - x[:, kept] @ solution).sum() / np.square(y).sum())
        np.testing.assert_allclose(scores[order[gone - 1]], sum(errors), rtol=1e-6)


def test_reconstruction_error_keeps_one_of_two_equal_units() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((100, 5))
    x[:, 3] = x[:, 0]
    weights = np.array([[5.0], [1.0], [1.0], [5.0], [1.0]])
    consumer = Consumer(x.T @ x, weights, np.arange(5)[:, None])
    scores = reconstruction_error([consumer], damping=1e-9)
    order = list(np.argsort(scores))
    assert order[0] in (0, 3)
    assert order[-1] == 3 - order[0]


def test_reconstruction_error_ranks_the_rest_by_what_each_would_add() -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((300, 8))
    consumer = Consumer(x.T @ x, generator.standard_normal((8, 3)), np.arange(8)[:, None])
    whole, part = reconstruction_error([consumer]), reconstruction_error([consumer], share=0.5)
    first = np.argsort(whole)[:4]
    np.testing.assert_allclose(part[first], whole[first])
    assert part[np.argsort(whole)[4:]].min() >= part[first].max()


def test_reconstruction_error_without_data_that_vary_is_zero() -> None:
    consumer = Consumer(np.zeros((3, 3)), np.ones((3, 2)), np.arange(3)[:, None])
    assert np.isfinite(reconstruction_error([consumer])).all()


def test_few_rows_are_damped_more() -> None:
    assert damping_for(8, 10**6) == 1e-3
    assert damping_for(960, 48_000) == pytest.approx(0.02)
    assert damping_for(960, 0) == damping_for(960, 960) == 0.1


def test_reconstruction_error_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same units"):
        reconstruction_error([])
    with pytest.raises(ValueError, match="do not fit"):
        reconstruction_error([Consumer(np.eye(4), np.ones((3, 2)), np.arange(3)[:, None])])


@pytest.mark.parametrize("method", sorted(NORMALIZATIONS))
def test_normalisation_keeps_the_order(method: str) -> None:
    scores = np.random.default_rng(0).random(20)
    np.testing.assert_array_equal(np.argsort(normalized(scores, method)), np.argsort(scores))
    assert not normalized(np.zeros(3), "max").any()


@pytest.mark.parametrize("method", ["mean", "max", "sum", "lamp"])
def test_normalised_scores_do_not_depend_on_the_scale(method: str) -> None:
    scores = np.random.default_rng(0).random(20)
    np.testing.assert_allclose(normalized(1000 * scores, method), normalized(scores, method))


def test_lamp_of_the_largest_is_one() -> None:
    np.testing.assert_allclose(normalized(np.array([1.0, 3.0, 2.0]), "lamp"), [1 / 14, 1, 4 / 13])


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalisation"):
        normalized(FIRST[0], "median")
