"""Rounding by least squares beats rounding to nearest on the data it saw."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.passes.quantize.adaptive_rounding import GramObserver, adaptively_rounded
from tinsmith.passes.quantize.numbers import integer_range, quantize, symmetric_parameters

_RANDOM = np.random.default_rng(11)
_CODES = integer_range(4, signed=True, narrow=True)


def _correlated(rows: int, columns: int) -> np.ndarray:
    factors = _RANDOM.standard_normal((rows, columns // 4))
    mixed = factors @ _RANDOM.standard_normal((columns // 4, columns))
    return (mixed + 0.1 * _RANDOM.standard_normal((rows, columns))).astype(np.float32)


def test_the_error_of_products_falls() -> None:
    weights = _RANDOM.standard_normal((32, 8)).astype(np.float32)
    data = _correlated(500, 32)
    observer = GramObserver()
    for part in np.split(data, 5):
        observer.update(part)
    scales = symmetric_parameters(weights.min(0), weights.max(0), _CODES)
    nearest = quantize(weights, scales, 0, _CODES, 1) * scales
    adapted = adaptively_rounded(weights, scales, _CODES, observer.gram)
    assert adapted.dtype == np.int8 and adapted.min() >= _CODES.low and adapted.max() <= _CODES.high
    errors = [np.square(data @ (w - weights)).sum() for w in (nearest, adapted * scales)]
    assert errors[1] < 0.3 * errors[0]


def test_windows_are_in_the_order_of_weights() -> None:
    image = _RANDOM.standard_normal((2, 7, 6, 3)).astype(np.float32)
    observer = GramObserver((3, 2), (2, 1), (1, 0, 1, 0), (1, 2), windows=10**6)
    observer.update(image)
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0), (0, 0)))
    rows = [
        padded[n, y : y + 3, x : x + 3 : 2].reshape(-1)
        for n in range(2)
        for y in range(0, 7, 2)
        for x in range(4)
    ]
    expected = np.asarray(rows, np.float64)
    np.testing.assert_allclose(observer.gram, expected.T @ expected, rtol=1e-6, atol=1e-6)


def test_without_correlation_the_nearest_code_is_best() -> None:
    weights = _RANDOM.standard_normal((3, 3, 2, 4)).astype(np.float32)
    scales = symmetric_parameters(weights.min((0, 1, 2)), weights.max((0, 1, 2)), _CODES)
    expected = quantize(weights, scales, 0, _CODES, 3)
    np.testing.assert_array_equal(adaptively_rounded(weights, scales, _CODES, np.eye(18)), expected)
    np.testing.assert_array_equal(
        adaptively_rounded(weights, scales, _CODES, np.zeros((18, 18))), expected
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit weights of 4 inputs"):
        adaptively_rounded(np.ones((4, 2)), np.ones(2), _CODES, np.eye(3))
    with pytest.raises(ValueError, match="no sample"):
        _ = GramObserver().gram
