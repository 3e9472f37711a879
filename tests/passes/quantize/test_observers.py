"""Observers: what they answer, and that neither order nor number of arrays matters."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinsmith.passes.quantize.numbers import UINT8, affine_parameters, dequantize, quantize
from tinsmith.passes.quantize.observers import (
    OBSERVERS,
    ChannelMinMaxObserver,
    EntropyObserver,
    GrowingHistogram,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    ObservationError,
    Observer,
    PercentileObserver,
    observer_factory,
)

MAGNITUDES = st.floats(2.0**-30, 2.0**60, width=32)
VALUES = st.one_of(MAGNITUDES, MAGNITUDES.map(lambda value: -value), st.just(0.0))
LISTS = st.lists(VALUES, min_size=1, max_size=60)


def observed(observer: Observer, *arrays: np.ndarray) -> tuple[float, float]:
    """The range after these arrays."""
    for array in arrays:
        observer.update(array)
    return observer.range()


def histogram_of(*arrays: np.ndarray, bins: int = 64) -> GrowingHistogram:
    histogram = GrowingHistogram(bins)
    for array in arrays:
        histogram.add(array, float(array.min()), float(array.max()))
    return histogram


@settings(max_examples=200, deadline=None)
@given(LISTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_histogram_is_that_of_all_values_at_once(
    values: list[float], random: object, pieces: int
) -> None:
    """However the values are ordered and divided; and each lies in the bin that counted it."""
    whole = histogram_of(np.float32(values))
    shuffled = list(values)
    random.shuffle(shuffled)
    parts = [part for part in np.array_split(np.float32(shuffled), pieces) if part.size]
    grown = histogram_of(*parts)
    edges, counts = whole.occupied()
    assert grown.width == whole.width and grown.zeros == whole.zeros
    assert all(np.array_equal(a, b) for a, b in zip(grown.occupied(), (edges, counts), strict=True))
    nonzero = np.float64(np.float32(values))
    nonzero = nonzero[nonzero != 0]
    inside = (nonzero[:, None] >= edges[:-1]) & (nonzero[:, None] < edges[1:])
    assert np.array_equal(inside.sum(0), counts)
    assert whole.total == len(values)
    assert len(counts) <= 64


def test_histogram_uses_at_least_half_of_its_bins() -> None:
    values = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
    assert 2048 <= len(histogram_of(values, bins=4096).occupied()[1]) <= 4096


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=60, deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=4))
def test_ranges_are_finite_ordered_and_within_the_values(
    name: str, lists: list[list[float]]
) -> None:
    arrays = [np.float32(values) for values in lists]
    low, high = observed(observer_factory(name)(), *arrays)
    everything = np.concatenate([*arrays, [0.0]])
    slack = 1e-6 * np.abs(everything).max()
    assert everything.min() - slack <= low <= high <= everything.max() + slack


@pytest.mark.parametrize("name", [n for n in OBSERVERS if n != "moving_average"])
def test_order_and_batches_do_not_matter(name: str) -> None:
    values = np.random.default_rng(1).standard_t(3, 6000).astype(np.float32)
    factory = observer_factory(name)
    assert observed(factory(), values) == observed(factory(), *np.array_split(values[::-1], 7))


@given(LISTS)
def test_min_max(values: list[float]) -> None:
    array = np.float32(values)
    assert observed(MinMaxObserver(), array) == (array.min(), array.max())


def test_moving_average() -> None:
    observer = MovingAverageObserver(0.25)
    arrays = [np.float32([-1, 1]), np.float32([-5, 3]), np.float32([0, 0])]
    assert observed(observer, *arrays) == (-1.5, 1.125)


def test_channel_extremes() -> None:
    observer = ChannelMinMaxObserver(axis=-1)
    observer.update(np.float32([[[1, -2], [3, 4]]]))
    observer.update(np.float32([[[0, 5], [2, 6]]]))
    low, high = observer.ranges()
    assert (low.tolist(), high.tolist()) == ([0, -2], [3, 6])
    assert observer.range() == (-2, 6)
    with pytest.raises(ObservationError, match="changed from 2 to 3"):
        observer.update(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99])
def test_percentile_agrees_with_numpy(percentile: float) -> None:
    values = np.random.default_rng(2).standard_normal(200000).astype(np.float32)
    low, high = observed(PercentileObserver(percentile), *np.array_split(values, 9))
    tail = (100 - percentile) / 2
    expected = np.percentile(values, [tail, 100 - tail])
    assert np.allclose([low, high], expected, atol=0.01 * np.abs(values).max())


def test_percentile_keeps_the_zero_end_and_counts_zeros() -> None:
    values = np.zeros(10000, np.float32)
    values[:30] = np.arange(1, 31)
    low, high = observed(PercentileObserver(99.8), values)
    assert low == 0.0
    # Half of 0.2 percent, 10 values, are left out at the upper end.
    assert 20 < high <= 21
    assert observed(PercentileObserver(100.0), values) == (0.0, 30.0)


def squared_error(values: np.ndarray, low: float, high: float, codes: object = UINT8) -> float:
    scale, zero_point = affine_parameters(low, high, codes)
    back = dequantize(quantize(values, scale, zero_point, codes), scale, zero_point)
    return float(np.square(back.astype(np.float64) - values).sum())


@pytest.mark.parametrize("shape", ["normal", "heavy", "relu", "outlier", "shifted"])
def test_mse_is_near_the_best_of_an_exhaustive_search(shape: str) -> None:
    generator = np.random.default_rng(3)
    values = {
        "normal": generator.standard_normal(20000),
        "heavy": generator.standard_t(2, 20000),
        "relu": np.maximum(generator.standard_normal(20000), 0),
        "outlier": np.append(generator.standard_normal(20000), 300.0),
        "shifted": generator.gamma(2.0, 1.0, 20000) - 0.3,
    }[shape].astype(np.float32)
    low, high = observed(MSEObserver(), *np.array_split(values, 5))
    ends = [values.min() * s for s in np.linspace(0.01, 1, 60)] if values.min() < 0 else [0.0]
    best = min(
        squared_error(values, a, values.max() * s) for a in ends for s in np.linspace(0.01, 1, 60)
    )
    assert squared_error(values, low, high) <= best * 1.1
    assert squared_error(values, low, high) <= squared_error(values, values.min(), values.max())


def test_entropy_cuts_a_far_outlier_but_not_even_values() -> None:
    generator = np.random.default_rng(4)
    normal = generator.standard_normal(100000).astype(np.float32)
    low, high = observed(EntropyObserver(), np.append(normal, np.float32(100.0)))
    assert 2.5 < high < 12 and -6 < low < -2.5
    even = generator.uniform(-1, 1, 100000).astype(np.float32)
    low, high = observed(EntropyObserver(), even)
    assert low < -0.95 and high > 0.95


def test_entropy_of_relu_keeps_zero_as_its_low_end() -> None:
    values = np.maximum(np.random.default_rng(5).standard_normal(50000), 0).astype(np.float32)
    low, high = observed(EntropyObserver(), values)
    assert low == 0.0 and 2.0 < high <= values.max()


@pytest.mark.parametrize("name", OBSERVERS)
def test_constants_and_refusals(name: str) -> None:
    factory = observer_factory(name)
    assert observed(factory(), np.zeros(5, np.float32)) == (0.0, 0.0)
    low, high = observed(factory(), np.full(5, -3.0, np.float32))
    assert low == -3.0 <= high <= 0.0
    with pytest.raises(ObservationError, match="no values"):
        observed(factory(), np.zeros(0, np.float32))
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(ObservationError, match="NaN or infinite"):
            factory().update(np.float32([1.0, wrong]))


def test_options_that_make_no_sense() -> None:
    for message, action in [
        ("choose from minmax", lambda: observer_factory("magic")),
        ("50..100", lambda: observer_factory("percentile", percentile=3.0)),
        ("1 to 8 bits", lambda: observer_factory("mse", bits=16)),
        ("0..1", lambda: MovingAverageObserver(0.0)),
        ("at least 16 bins", lambda: GrowingHistogram(3)),
    ]:
        with pytest.raises(ValueError, match=message):
            action()


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow_with_the_number_of_arrays(name: str) -> None:
    generator = np.random.default_rng(6)

    def peak(arrays: int) -> int:
        observer = observer_factory(name)()
        tracemalloc.start()
        try:
            for step in range(arrays):
                observer.update(generator.standard_normal(50000, np.float32) * (1 + step))
            observer.range()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # whatever is made once
    few, many = peak(4), peak(128)
    assert many < few + 1_000_000  # all values together are 25 MB
