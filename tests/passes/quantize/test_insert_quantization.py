"""Quantisation in a float graph, against numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from quantize_checks import (
    convolve,
    quantized,
    ranges_of,
    rounded,
    rounded_weights,
    two_convolutions,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import assert_same_interface, execute, operators, random_inputs

from tinsmith.passes.quantize.insert_quantization import InsertQuantization, QuantizationOptions
from tinsmith.targets.x86.backend import FORMATS as X86


def test_values_are_those_of_rounded_operands() -> None:
    module, first, bias, second = two_convolutions()
    after = quantized(module, {"x": (-3, 3), "hidden": (0, 12)})
    assert_same_interface(module, after)
    (x,) = random_inputs(module)
    hidden = convolve(rounded(x, -3, 3), rounded_weights(first), padding=1) + bias
    hidden = rounded(np.maximum(hidden, 0).astype(np.float32), 0, 12)
    expected = convolve(hidden, rounded_weights(second))
    (actual,) = execute(after, [x])
    # A value beside a tie may be rounded to the other side: one step of one operand.
    assert np.abs(actual - expected).max() < 12 / 255 * np.abs(second).max()
    assert np.abs(actual - expected).mean() < 1e-4


def test_a_graph_without_integer_operators_is_left_alone() -> None:
    module, *_ = two_convolutions()
    options = QuantizationOptions(keep_float=frozenset({"a", "out"}))
    assert operators(quantized(module, {}, options)) == operators(module)


def test_a_missing_or_infinite_range_is_refused() -> None:
    module, *_ = two_convolutions()
    with pytest.raises(ValueError, match="tensor hidden is not known"):
        InsertQuantization({"x": (0, 1)}, X86)(module)
    with pytest.raises(ValueError, match="range of tensor x"):
        InsertQuantization({**ranges_of(module), "x": (0, np.inf)}, X86)(module)


def test_bits_are_checked() -> None:
    with pytest.raises(ValueError, match="weight_bits must be 2 to 8"):
        QuantizationOptions(weight_bits=9)
