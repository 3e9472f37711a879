"""When two tensors agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.compiler.evaluate.compare import (
    QUANTIZED_TOLERANCE,
    TOLERANCE,
    compare,
    compare_all,
    tolerance,
)

REFERENCE = np.array([-1.0, 0.0, 3.0], np.float32)


@given(st.floats(-1, 1).filter(lambda x: abs(abs(x) - 4e-3) > 1e-6), st.integers(0, 2))
def test_deviation_is_relative_to_the_range_of_the_reference(error: float, where: int) -> None:
    actual = REFERENCE.astype(np.float64)
    actual[where] += error
    difference = compare("y", actual, REFERENCE)
    assert difference.absolute == pytest.approx(abs(error), abs=1e-12)
    assert difference.relative == pytest.approx(abs(error) / 4, abs=1e-12)
    assert difference.agrees == (abs(error) / 4 < 1e-3)


@pytest.mark.parametrize(
    ("actual", "expected", "detail"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), "shape"),
        (np.zeros(2, np.int32), np.zeros(2, np.float32), "dtype"),
        (np.zeros(2, bool), np.zeros(2, np.int64), "dtype"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 values differ"),
        (np.array([np.nan, 1.0]), np.array([0.0, 1.0]), "different places"),
        (np.array([0.0, 1.0]), np.array([np.nan, 1.0]), "different places"),
        (np.array([-np.inf]), np.array([np.inf]), "different places"),
    ],
)
def test_what_cannot_agree(actual: np.ndarray, expected: np.ndarray, detail: str) -> None:
    difference = compare("y", actual, expected)
    assert not difference.agrees
    assert detail in difference.detail
    assert difference.to_dict()["relative"] is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.0])),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.array([True, False]), np.array([True, False])),
        (np.array([5], np.int32), np.array([5], np.int64)),
        (np.array([500.1]), np.array([500.0])),
        (np.array([0.0]), np.array([0.0])),
    ],
)
def test_what_agrees(actual: np.ndarray, expected: np.ndarray) -> None:
    assert compare("y", actual, expected).agrees


def test_codes_of_8_bits_are_numbers() -> None:
    codes = np.array([0, 100, 200], np.uint8)
    assert compare("y", codes, codes).agrees
    assert not compare("y", codes + np.uint8(1), codes).agrees
    assert compare("y", codes + np.uint8(1), codes, QUANTIZED_TOLERANCE).agrees
    assert not compare("y", codes + np.uint8(9), codes, QUANTIZED_TOLERANCE).agrees


def test_a_missing_output_does_not_agree() -> None:
    one, two = compare_all({"a": REFERENCE}, {"a": REFERENCE, "b": REFERENCE})
    assert one.agrees
    assert not two.agrees
    assert two.detail == "missing"


def test_dtypes_of_few_digits_are_allowed_more() -> None:
    assert tolerance() == tolerance("float32", "float64", "int64") == TOLERANCE
    assert tolerance("float32", "float16") > TOLERANCE
    assert tolerance("bfloat16", "float16") > tolerance("float16")
    # Neighbours of all numbers up to 1 agree, neighbours four places away do not.
    near = np.array([0.0, 1.0], np.float16)
    for places, agrees in ((2, True), (8, False)):
        moved = near + np.float16(places * 2**-10)
        assert compare("y", moved, near, tolerance("float16")).agrees is agrees
