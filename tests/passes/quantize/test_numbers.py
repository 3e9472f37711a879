"""The integer contract: against Python's own exact arithmetic, and its properties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.passes.quantize.numbers import (
    INT8,
    NARROW_INT8,
    UINT8,
    affine_parameters,
    dequantize,
    fused_multiply_add,
    integer_range,
    largest_accumulation,
    quantize,
    requantize,
    symmetric_parameters,
)

FLOATS = st.floats(-1e6, 1e6, width=32)
RANGES = [UINT8, INT8, NARROW_INT8, integer_range(4, signed=False), integer_range(2, signed=True)]


def test_halves_round_to_even() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    assert quantize(values, 1.0, 0, INT8).tolist() == [0, 2, 2, 0, -2, -2]


def test_the_zero_point_is_added_after_rounding() -> None:
    """Otherwise 0.5 + 1 = 1.5 would round to 2."""
    assert quantize(np.float32([0.5]), 1.0, 1, UINT8).tolist() == [1]


def test_saturates_at_infinity_and_beyond_the_integers() -> None:
    values = np.array([-np.inf, -1e30, 1e30, np.inf, 3e38], np.float32)
    assert quantize(values, 1e-6, 128, UINT8).tolist() == [0, 0, 255, 255, 255]
    assert quantize(values, 1.0, 0, NARROW_INT8).tolist() == [-127, -127, 127, 127, 127]


@given(st.lists(FLOATS, min_size=1, max_size=20), st.floats(2.0**-20, 2.0**20, width=32))
def test_agrees_with_exact_arithmetic_for_a_power_of_two(values: list[float], scale: float) -> None:
    """A power of two has an exact reciprocal, so that the float32 result is the exact one."""
    scale = float(2.0 ** np.floor(np.log2(scale)))
    codes = quantize(np.float32(values), scale, 3, INT8)
    exact = [min(max(round(Fraction(value) / Fraction(scale)) + 3, -128), 127) for value in values]
    assert codes.tolist() == exact


@given(st.tuples(FLOATS, FLOATS).map(sorted), st.sampled_from(RANGES), st.floats(0, 1, width=32))
def test_affine_range_has_an_error_of_half_a_step(
    bounds: list[float], codes: object, share: float
) -> None:
    low, high = bounds
    scale, zero_point = affine_parameters(low, high, codes)
    value = np.float32(low + share * (high - low))
    back = dequantize(quantize(value, scale, zero_point, codes), scale, zero_point)
    # Moving zero onto a level moves the ends by up to half a step: one step there.
    inside = (codes.low - zero_point) * scale <= value <= (codes.high - zero_point) * scale
    limit = float(scale) * (0.5 if inside else 1.0)
    # The reciprocal, the product with it and the product on the way back are rounded each.
    rounding = 4 * float(np.finfo(np.float32).eps) * abs(float(value))
    assert abs(float(back) - float(value)) <= limit * 1.00001 + rounding + 1e-30
    assert dequantize(quantize(0.0, scale, zero_point, codes), scale, zero_point) == 0.0


@given(st.floats(0, 2.0**127, width=32), st.sampled_from([INT8, NARROW_INT8]))
def test_symmetric_range_reaches_its_end(bound: float, codes: object) -> None:
    scale = symmetric_parameters(-bound, bound / 2, codes)
    assert np.isfinite(scale) and np.isfinite(np.float32(1) / scale)
    if bound > 1e-30:
        assert quantize(np.float32(-bound), scale, 0, codes) == -codes.high


def test_an_empty_range_gets_a_scale_of_one() -> None:
    scale, zero_point = affine_parameters(np.array([0.0, -1.0]), np.array([0.0, 3.0]), UINT8)
    assert scale.tolist() == [1.0, np.float32(4 / 255)]
    assert zero_point.tolist() == [0, 64]
    assert scale.dtype == np.float32 and zero_point.dtype == np.int32


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_refuses_ranges_that_are_none(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="range to quantise"):
        affine_parameters(low, high, UINT8)
    with pytest.raises(ValueError, match="range to quantise"):
        symmetric_parameters(low, high, INT8)


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 8 bits"):
        integer_range(bits, signed=False)


def test_parameters_run_along_an_axis() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    scales = np.float32([1.0, 0.5, 0.25])
    codes = quantize(values, scales, 0, INT8, axis=1)
    assert codes.tolist() == [[0, 2, 8], [3, 8, 20]]
    assert np.array_equal(dequantize(codes, scales, 0, axis=1), values)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30),
    st.floats(2.0**-26, 2.0**-7, width=32),
    st.floats(-10, 10, width=32),
    st.floats(2.0**-10, 1, width=32),
    st.integers(0, 255),
)
def test_requantise_is_off_by_one_code_at_most(
    accumulators: list[int], multiplier: float, bias: float, scale: float, zero_point: int
) -> None:
    accumulator = np.array(accumulators, np.int32)
    codes = requantize(accumulator, multiplier, scale, zero_point, UINT8, bias=bias)
    real = [Fraction(a) * Fraction(multiplier) + Fraction(bias) for a in accumulators]
    exact = [min(max(round(r / Fraction(scale)) + zero_point, 0), 255) for r in real]
    assert np.abs(codes.astype(int) - np.array(exact)).max() <= 1


ANY_FLOAT = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


@given(st.lists(st.tuples(ANY_FLOAT, ANY_FLOAT, ANY_FLOAT), min_size=1, max_size=20))
def test_a_product_and_a_sum_are_rounded_once(triples: list[tuple[float, float, float]]) -> None:
    a, b, c = np.array(triples, np.float32).T
    for x, y, z, found in zip(a, b, c, fused_multiply_add(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        below, above = np.nextafter(found, -np.inf), np.nextafter(found, np.inf)
        error = abs(Fraction(float(found)) - exact)
        assert all(error <= abs(Fraction(float(n)) - exact) for n in (below, above))


def test_the_sum_is_not_rounded_to_float64_first() -> None:
    # A product of 2^-24 (1 - 2^-32): the sum lies below the middle of two float32, and float64
    # would take it for the middle, from which one rounds to even, upwards.
    a, b = np.float32([2.0**-12 * (1 + 2.0**-16)]), np.float32([2.0**-12 * (1 - 2.0**-16)])
    c = np.float32([1 + 2.0**-23])
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert fused_multiply_add(a, b, c) == c < twice


def test_fused_infinities_and_nan_are_those_of_ieee_754() -> None:
    a = np.float32([np.inf, np.inf, np.nan, 3e38])
    b = np.float32([1, 0, 1, 3e38])
    c = np.float32([-np.inf, 0, 1, 1])
    found = fused_multiply_add(a, b, c)
    assert np.isnan(found[:3]).all() and found[3] == np.inf


def test_requantise_without_bias_is_two_products() -> None:
    accumulator = np.array([[100, -100], [2**24 + 1, 7]], np.int32)
    multiplier = np.float32([0.01, 0.02])
    expected = quantize(accumulator.astype(np.float32) * multiplier, 0.1, 10, UINT8)
    assert np.array_equal(requantize(accumulator, multiplier, 0.1, 10, UINT8, axis=1), expected)
    assert expected.tolist() == [[20, 0], [255, 11]]


def test_accumulators_that_cannot_overflow() -> None:
    count = largest_accumulation(UINT8, INT8)
    assert count * 255 * 128 <= 2**31 - 1 < (count + 1) * 255 * 128
