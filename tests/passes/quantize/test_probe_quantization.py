"""A graph with a switch for each layer, against the quantised graph and plain numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from quantize_checks import (
    Graph,
    array,
    attention,
    convolve,
    quantized,
    ranges_of,
    rounded,
    rounded_weights,
    two_convolutions,
)
from tvm import relax

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import execute, operators, random_inputs

from tinsmith.passes.quantize.bias_correction import CorrectBias
from tinsmith.passes.quantize.insert_quantization import QuantizationOptions
from tinsmith.passes.quantize.probe_quantization import ProbeQuantization, probed_operators
from tinsmith.targets.x86.backend import FORMATS as X86

_ON, _OFF = np.ones(1, np.float32), np.zeros(1, np.float32)


def test_one_layer_becomes_this() -> None:
    weights = array(1, 1, 3, 2)
    graph = Graph(1, 2, 2, 3)
    module = graph.module(graph.conv("out", graph.input, weights))
    after = ProbeQuantization({"x": (-1.0, 2.0)}, X86)(module)
    assert operators(after) == [
        "quantize",
        "dequantize",
        "subtract",
        "multiply",
        "add",
        "nn.conv2d",
        "nn.conv2d",
        "multiply",
        "add",
    ]
    assert [parameter.name for parameter in after["main"].params] == ["x", "switch0"]
    tvm.ir.assert_structural_equal(after["main"].ret_ty, module["main"].ret_ty)
    (x,) = random_inputs(module)
    (actual,) = execute(after, [x, _ON])
    expected = convolve(rounded(x, -1, 2), rounded_weights(weights))
    assert np.allclose(actual, expected, atol=1e-5)


def test_switches_choose_the_layers() -> None:
    module, first, bias, second = two_convolutions()
    assert probed_operators(module, X86) == ("a", "out")
    probe = ProbeQuantization({"x": (-3, 3), "hidden": (0, 12)}, X86)(module)
    (x,) = random_inputs(module)
    (exact,) = execute(module, [x])
    assert np.array_equal(execute(probe, [x, _OFF, _OFF])[0], exact)
    hidden = np.maximum(convolve(x, first, padding=1) + bias, 0).astype(np.float32)
    expected = convolve(rounded(hidden, 0, 12), rounded_weights(second))
    (only_second,) = execute(probe, [x, _OFF, _ON])
    assert np.abs(only_second - expected).max() < 12 / 255 * np.abs(second).max()
    assert np.abs(only_second - expected).mean() < 1e-4


def test_all_switches_make_the_quantised_graph() -> None:
    module, *_ = two_convolutions()
    ranges = ranges_of(module)
    means = {"x": np.full(3, 0.2), "hidden": np.full(8, 0.7)}
    corrected = CorrectBias(means, X86)(module)
    expected = quantized(corrected, ranges)
    probe = ProbeQuantization(ranges, X86, means=means)(module)
    (x,) = random_inputs(module)
    (actual,) = execute(probe, [x, _ON, _ON])
    (wanted,) = execute(expected, [x])
    # A value beside a tie of the inner tensor may be rounded to the other side.
    assert np.abs(actual - wanted).mean() < 1e-4 * np.abs(wanted).mean()


def test_layers_kept_in_float_get_no_switch() -> None:
    module, *_ = two_convolutions()
    options = QuantizationOptions(keep_float=frozenset({"a", "out"}))
    after = ProbeQuantization({}, X86, options)(module)
    tvm.ir.assert_structural_equal(after, relax.transform.Normalize()(module), map_free_vars=True)


def test_a_missing_range_is_refused() -> None:
    module, *_ = two_convolutions()
    with pytest.raises(ValueError, match="tensor hidden is not known"):
        ProbeQuantization({"x": (0, 1)}, X86)(module)


def test_both_operands_of_a_computed_product_are_switched() -> None:
    module = attention()
    ranges = {"x": (-3, 3), "q": (-9, 11), "k": (-12, 8), "v": (-9, 9), "weights": (0, 1)}
    expected = execute(quantized(module, ranges), random_inputs(module))[0]
    exact = execute(module, random_inputs(module))[0]
    probe = ProbeQuantization(ranges, X86)(module)
    switched = execute(probe, [*random_inputs(module), *[_ON] * 5])[0]
    assert np.array_equal(execute(probe, [*random_inputs(module), *[_OFF] * 5])[0], exact)
    assert np.abs(switched - expected).max() < 0.1 * np.abs(expected - exact).max()
