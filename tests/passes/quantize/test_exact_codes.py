"""Codes that give float weights back bit for bit, and weights that have none."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.passes.quantize.exact_codes import exact_codes

_RANDOM = np.random.default_rng(0)


def _numbers(low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    return _RANDOM.integers(low, high, shape).astype("float32")


def _scales(*shape: int) -> np.ndarray:
    return _RANDOM.uniform(1e-3, 1e-2, shape).astype("float32")


def _blocks(values: np.ndarray, size: int) -> np.ndarray:
    return values.repeat(size, 0)


# What a file may hold, as the floats it stands for: bits, groups of a column, offsets.
CASES = {
    "one scale": (_numbers(-128, 128, (300, 40)) * np.float32(0.0123), 8, 1, False),
    "scales of columns": (_numbers(-127, 128, (300, 40)) * _scales(40), 8, 1, False),
    "zero points": (
        (_numbers(0, 256, (300, 40)) - _numbers(60, 200, (40,))) * _scales(40), 8, 1, True,
    ),
    "far zero points": (
        (_numbers(0, 200, (300, 40)) + np.float32(50)) * _scales(40), 8, 1, True,
    ),
    "whole numbers": (_numbers(-100, 101, (64, 64)), 8, 1, False),
    "four bits": (_numbers(-8, 8, (133, 77)) * _scales(77), 4, 1, False),
    "four bits in blocks": (
        _numbers(-8, 8, (256, 40)) * _blocks(_scales(8, 40), 32), 4, 8, False,
    ),
    "zero points of blocks": (
        (_numbers(0, 16, (256, 40)) - _blocks(_numbers(0, 16, (8, 40)), 32))
        * _blocks(_scales(8, 40), 32), 4, 8, True,
    ),
    "eight bits in blocks": (
        _numbers(-127, 128, (250, 40)) * _blocks(_scales(4, 40), 64)[:250], 8, 4, False,
    ),
    "a convolution": (_numbers(-127, 128, (3, 3, 16, 24)) * _scales(24), 8, 1, False),
    "columns of zeros": (_numbers(-8, 8, (64, 8)) * np.array([0, 1] * 4, "float32"), 4, 1, False),
    "scales below zero": (_numbers(-127, 128, (64, 8)) * -_scales(8), 8, 1, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_very_same_numbers(name: str) -> None:
    weights, bits, groups, offsets = CASES[name]
    found = exact_codes(weights)
    assert found is not None
    np.testing.assert_array_equal(found.dequantize(), weights)
    assert (found.bits, found.grouping.count) == (bits, groups)
    assert (found.offsets is not None) is offsets
    assert found.optional


def test_short_scales_are_short() -> None:
    found = exact_codes(_numbers(-127, 128, (64, 8)) * np.float32(0.25))
    assert found is not None
    assert found.scales.dtype == np.float16


@pytest.mark.parametrize(
    "weights",
    [
        _RANDOM.standard_normal((300, 40)).astype("float32"),
        _RANDOM.standard_normal((300, 40)).astype("float16").astype("float32"),
        _numbers(-127, 128, (300, 40)) * _scales(300, 1),
        _numbers(-2000, 2000, (300, 40)),
        _numbers(-127, 128, (64, 8)) * np.float32(np.nan),
        _numbers(-127, 128, (64, 8)) * np.float32(1e-42),
    ],
    ids=["floats", "halves", "scales of rows", "eleven bits", "not a number", "denormal"],
)
def test_weights_on_no_grid(weights: np.ndarray) -> None:
    assert exact_codes(weights) is None
