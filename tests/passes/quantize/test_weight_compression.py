"""Weights as codes with scales by group: errors, groups, and rounding by least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinsmith.passes.quantize.weight_compression import Method, can_be_scaled, compress
from tinsmith.targets.compressed_weights import (
    EVEN_LEVELS,
    Grouping,
    compressed_weights,
    decompress_call,
)

_RANDOM = np.random.default_rng(5)


def noise_db(exact: np.ndarray, approximate: np.ndarray) -> float:
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - approximate).sum())


def weights_of(*shape: int) -> np.ndarray:
    """Normal weights whose output channels differ in size by up to eight times."""
    spread = 2.0 ** _RANDOM.integers(-1, 3, shape[-1])
    return (_RANDOM.standard_normal(shape) * spread).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    taps=st.integers(1, 25), channels=st.integers(1, 300), size=st.sampled_from([16, 32, 64, 128])
)
def test_groups_cover_the_reduction_in_runs(taps: int, channels: int, size: int) -> None:
    grouping = Grouping.of(taps, channels, size)
    groups = grouping.indices()
    assert groups.shape == (taps * channels,)
    assert groups[0] == 0 and set(np.diff(groups)) <= {0, 1} and groups[-1] == grouping.count - 1
    assert np.bincount(groups).max() <= size
    # A kernel reads whole bytes of two codes for each group, and whole positions.
    assert grouping.groups_of_tap == 1 or grouping.group_channels % 2 == 0
    assert grouping.taps_together == 1 or grouping.group_channels == channels


@pytest.mark.parametrize(
    ("method", "least"),
    [(Method.INT8, 43), (Method.INT4, 19), (Method.KMEANS4, 20), (Method.POWERS4, 14)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3, 3, 40, 24), (200, 48)], ids=str)
def test_the_error_is_that_of_the_bits(
    method: Method, least: float, shape: tuple[int, ...]
) -> None:
    weights = weights_of(*shape)
    stored = compress(weights, method, 64)
    assert stored.codes.shape == shape
    assert noise_db(weights, stored.dequantize()) > least
    assert stored.stored_bytes < weights.nbytes * (0.28 if method is Method.INT8 else 0.16)


def test_even_levels_are_off_by_half_a_step_at_most() -> None:
    weights = weights_of(64, 32)
    stored = compress(weights, Method.INT4, 32)
    scale = np.abs(stored.scales.astype(np.float32))[stored.grouping.indices()]
    # The positive end, 7 of 8 steps, saturates only where both ends are nearly as far.
    error = np.abs(stored.dequantize() - weights)
    assert (error <= 1.001 * scale).all() and np.mean(error <= 0.501 * scale) > 0.99


def test_the_extreme_of_a_group_is_exact_up_to_float16() -> None:
    weights = weights_of(32, 8)
    for method in (Method.INT8, Method.INT4):
        stored = compress(weights, method, 32).dequantize()
        places = np.abs(weights).argmax(0)[None]
        exact = np.take_along_axis(weights, places, 0)
        np.testing.assert_allclose(np.take_along_axis(stored, places, 0), exact, rtol=2**-10)


def test_zeros_stay_zero() -> None:
    weights = weights_of(64, 4)
    weights[:32, 1] = 0
    for method in (Method.INT8, Method.INT4):
        assert not compress(weights, method, 32).dequantize()[:32, 1].any()


def test_few_distinct_weights_are_exact_in_a_codebook() -> None:
    weights = _RANDOM.choice(np.float32([-1, -0.5, 0, 0.25, 0.5]), (64, 16))
    np.testing.assert_array_equal(compress(weights, Method.KMEANS4, 64).dequantize(), weights)


@pytest.mark.parametrize("method", [Method.INT4, Method.KMEANS4, Method.POWERS4])
def test_rounding_for_data_keeps_products_better(method: Method) -> None:
    weights = weights_of(3, 3, 8, 16)
    mixed = _RANDOM.standard_normal((400, 12)) @ _RANDOM.standard_normal((12, 72))
    data = mixed + 0.2 * _RANDOM.standard_normal((400, 72))
    nearest = compress(weights, method, 32)
    adapted = compress(weights, method, 32, gram=data.T @ data)
    exact = data @ weights.reshape(72, 16)
    before, after = (
        noise_db(exact, data @ stored.dequantize().reshape(72, 16)) for stored in (nearest, adapted)
    )
    assert after > before + 3


def test_what_float16_scales_cannot_express() -> None:
    assert can_be_scaled(weights_of(8, 8))
    for broken in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.full((2, 2), 1e6), [[1e-9]]):
        assert not can_be_scaled(np.asarray(broken, np.float32))


@pytest.mark.parametrize("method", list(Method))
def test_a_graph_carries_them_unchanged(method: Method) -> None:
    stored = compress(weights_of(3, 3, 20, 8), method, 64)
    read = compressed_weights(decompress_call(stored))
    assert read is not None and read.grouping == stored.grouping and read.even == stored.even
    np.testing.assert_array_equal(read.dequantize(), stored.dequantize())
    assert (method is Method.INT4) == (stored.levels is EVEN_LEVELS)
