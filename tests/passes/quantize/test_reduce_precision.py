"""Convolutions and matrix products in bfloat16."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
from quantize_checks import Graph, array, convolve, lowered, ranges_of, two_convolutions
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import (
    assert_becomes,
    assert_left_alone,
    assert_same_interface,
    execute,
    operators,
    random_inputs,
)

from tinsmith.passes.quantize.insert_quantization import InsertQuantization, QuantizationOptions
from tinsmith.passes.quantize.precision_placement import place_precision
from tinsmith.passes.quantize.reduce_precision import ReducePrecision
from tinsmith.passes.quantize.store_integers import StoreIntegers
from tinsmith.targets.x86.backend import FORMATS as X86

BFLOAT16 = ml_dtypes.bfloat16


def rounded(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, "float32").astype(BFLOAT16).astype("float64")


def kinds(module: tvm.IRModule) -> dict[str, str]:
    """Dtype of every bound tensor by name."""
    return {
        binding.var.name: str(binding.var.ty.dtype)
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.var.ty, relax.TensorType)
    }


def test_tensors_between_convolutions_are_stored_short() -> None:
    weights = np.full((1, 1, 2, 2), 1.0078125, "float32")  # 1 + 2^-7: the next after 1

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tensor((1, 2, 2, 2), "float32"):
            with R.dataflow():
                c = R.nn.conv2d(x, R.const(weights), data_layout="NHWC", kernel_layout="HWIO")
                y = R.nn.relu(c)
                p = R.nn.max_pool2d(y, (2, 2), (2, 2), layout="NHWC")
                out = R.nn.conv2d(p, R.const(weights), data_layout="NHWC", kernel_layout="HWIO")
                R.output(out)
            return out

    short = weights.astype(BFLOAT16)

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tensor((1, 2, 2, 2), "float32"):
            with R.dataflow():
                xb = R.astype(x, "bfloat16")
                c = R.nn.conv2d(
                    xb,
                    R.const(short, "bfloat16"),
                    data_layout="NHWC",
                    kernel_layout="HWIO",
                    out_dtype="float32",
                )
                y = R.nn.relu(c)
                yb = R.astype(y, "bfloat16")
                p = R.nn.max_pool2d(yb, (2, 2), (2, 2), layout="NHWC")
                out = R.nn.conv2d(
                    p,
                    R.const(short, "bfloat16"),
                    data_layout="NHWC",
                    kernel_layout="HWIO",
                    out_dtype="float32",
                )
                R.output(out)
            return out

    assert_becomes(ReducePrecision(), Before, After)


def test_products_are_those_of_rounded_operands() -> None:
    module, first, bias, second = two_convolutions()
    after = ReducePrecision()(module)
    assert_same_interface(module, after)
    (x,) = random_inputs(module)
    hidden = np.maximum(convolve(rounded(x), rounded(first), padding=1) + bias, 0)
    expected = convolve(rounded(hidden), rounded(second))
    (actual,) = execute(after, [x])
    # A value beside a tie may be rounded to the other side.
    assert np.abs(actual - expected).max() < 2**-8 * np.abs(hidden).max() * np.abs(second).max()
    assert np.abs(actual - expected).mean() < 1e-4


def test_a_residual_is_stored_once_and_widened_by_each_reader() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 4))
    second = graph.conv("second", first, array(3, 3, 4, 4), padding=1)
    added = graph.bind("added", relax.op.add(first, second))
    module = graph.module(graph.conv("last", added, array(1, 1, 4, 4)))
    assert place_precision(module).stored == {"x", "first", "added"}
    after = ReducePrecision()(module)
    stored = {name: kind for name, kind in kinds(after).items() if kind == "bfloat16"}
    assert set(stored) == {"x_bfloat16", "first_bfloat16", "added_bfloat16"}
    assert operators(after).count("astype") == 4


def test_a_result_of_the_function_stays_as_computed() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 4))
    second = graph.conv("second", first, array(1, 1, 4, 4))
    both = relax.op.concat([first, second], 3)
    module = graph.module(graph.bind("both", both))
    after = ReducePrecision()(module)
    assert_same_interface(module, after)
    assert kinds(after)["out"] == "float32"


def test_split_and_concatenation_move_stored_values() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 8))
    halves = graph.bind("halves", relax.op.split(first, 2, 3))
    left = graph.bind("left", relax.TupleGetItem(halves, 0))
    right = graph.bind("right", relax.TupleGetItem(halves, 1))
    joined = graph.bind("joined", relax.op.concat([right, left], 3))
    module = graph.module(graph.conv("last", joined, array(1, 1, 8, 4)))
    found = kinds(ReducePrecision()(module))
    assert [found[name] for name in ("left", "right", "joined")] == ["bfloat16"] * 3


def test_what_has_no_kernel_stays_in_float32_with_the_reason() -> None:
    graph = Graph(1, 6, 6, 6)
    odd = graph.conv("odd", graph.input, array(1, 1, 3, 4), groups=2)
    flat = graph.bind("flat", relax.op.reshape(odd, (36, 4)))
    turned = graph.bind("turned", relax.op.permute_dims(flat))
    product = graph.bind("product", relax.op.matmul(flat, turned))
    module = graph.module(graph.bind("y", relax.op.nn.relu(product)))
    placement = place_precision(module)
    assert placement.operators == ()
    assert [(f.name, f.reason) for f in placement.float_operators] == [
        ("odd", "its groups have an odd number of channels"),
        ("product", "its right operand is not constant"),
    ]
    assert_left_alone(ReducePrecision(), module)


def test_the_moments_of_a_normalisation_stay_in_float32() -> None:
    """E[x^2] - E[x]^2 would cancel what is left of the variance after rounding."""
    graph = Graph(4, 64)
    x = graph.bind("x1", relax.op.matmul(graph.input, relax.const(array(64, 32))))
    mean = graph.bind("mean", relax.op.mean(x, 1, keepdims=True))
    square = graph.bind("square", relax.op.multiply(x, x))
    second = graph.bind("second", relax.op.mean(square, 1, keepdims=True))
    mean_square = graph.bind("mean_square", relax.op.multiply(mean, mean))
    variance = graph.bind("variance", relax.op.subtract(second, mean_square))
    centred = graph.bind("centred", relax.op.subtract(x, mean))
    inverse = graph.bind("inverse", relax.op.rsqrt(variance))
    scaled = graph.bind("scaled", relax.op.multiply(centred, inverse))
    module = graph.module(graph.bind("last", relax.op.matmul(scaled, relax.const(array(32, 8)))))
    assert place_precision(module).stored == {"x", "x1", "scaled"}


def test_names_choose_and_exclude() -> None:
    module, *_ = two_convolutions()
    assert place_precision(module, only={"out"}).operators == ("out",)
    assert place_precision(module, keep_float={"out"}).operators == ("a",)
    assert_left_alone(ReducePrecision(only=()), module)
    with pytest.raises(ValueError, match="float16: operators compute in bfloat16"):
        ReducePrecision("float16")


def test_layers_kept_out_of_integers_compute_in_bfloat16() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 8))
    second = graph.conv("second", first, array(3, 3, 8, 8), padding=1)
    module = graph.module(graph.conv("last", second, array(1, 1, 8, 4)))
    kept = frozenset({"second"})
    ranges = {**ranges_of(module, -6, 6)}
    mixed = InsertQuantization(ranges, X86, QuantizationOptions(keep_float=kept))(module)
    after = lowered(ReducePrecision(only=kept)(mixed))
    products = [
        str(binding.value.args[0].ty.dtype)
        for block in after["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op.name == "relax.nn.conv2d"
    ]
    assert products == ["uint8", "bfloat16", "uint8"]
    (x,) = random_inputs(module)
    (expected,), (actual,) = execute(lowered(mixed), [x]), execute(after, [x])
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_a_kernel_ends_where_a_short_float_is_stored() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 8))
    short = graph.bind("short", relax.op.astype(first, "bfloat16"))
    wide = graph.bind("wide", relax.op.astype(short, "float32"))
    module = graph.module(graph.bind("y", relax.op.nn.softmax(wide)))
    assert "reshape" in operators(StoreIntegers()(module))
