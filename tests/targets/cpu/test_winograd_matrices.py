"""The matrices of minimal filtering: exact, factored, and well conditioned."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.targets.cpu.winograd_matrices import TILES, winograd_matrices


@pytest.mark.parametrize("tile", TILES)
def test_computes_a_filter(tile):
    matrices = winograd_matrices(tile)
    forward = matrices.input[0] @ matrices.input[1]
    back = matrices.output[0] @ matrices.output[1]
    random = np.random.default_rng(0)
    patch, taps = random.standard_normal((tile + 2, tile + 2)), random.standard_normal((3, 3))
    products = (matrices.weights @ taps @ matrices.weights.T) * (forward @ patch @ forward.T)
    expected = sum(
        taps[i, j] * patch[i : i + tile, j : j + tile] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(back @ products @ back.T, expected, atol=1e-13)


@pytest.mark.parametrize("tile", TILES)
def test_the_factors_of_the_weights(tile):
    matrices = winograd_matrices(tile)
    outer, inner = matrices.weight_factors
    np.testing.assert_allclose(outer @ inner, matrices.weights, rtol=1e-15)
    operations = np.count_nonzero(inner) + np.count_nonzero(outer) - len(outer)
    assert operations < 2 * np.count_nonzero(matrices.weights) - len(outer)


@pytest.mark.parametrize("tile", TILES)
def test_weights_can_be_read_back(tile):
    matrices = winograd_matrices(tile)
    np.testing.assert_allclose(matrices.recovery @ matrices.weights, np.eye(3), atol=1e-15)
    assert np.count_nonzero(matrices.recovery) == 4


@pytest.mark.parametrize("tile", TILES)
def test_transforms_of_data_have_exact_coefficients(tile):
    """Only the weights' transform, which is computed in float64, rounds its matrix."""
    matrices = winograd_matrices(tile)
    for factor in (*matrices.input, *matrices.output):
        np.testing.assert_array_equal(factor, factor.astype("float32"))
