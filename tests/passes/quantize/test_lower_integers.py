"""Integer lowering, and what is simplified before it."""

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
    dtypes,
    lowered,
    quantized,
    ranges_of,
    two_convolutions,
)
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import assert_becomes, assert_left_alone, execute, operators

from tinsmith.passes.quantize.lower_integers import LowerIntegers
from tinsmith.passes.quantize.match_signedness import MatchSignedness
from tinsmith.passes.quantize.placement import place
from tinsmith.passes.quantize.simplify_quantization import SimplifyQuantization
from tinsmith.targets.arm.backend import FORMATS as ARM
from tinsmith.targets.x86.backend import FORMATS as X86


def _assert_lowering_keeps_values(before: tvm.IRModule) -> tvm.IRModule:
    after = lowered(before)
    shape = [int(n) for n in before["main"].params[0].ty.shape.values]
    x = np.random.default_rng(0).normal(0.5, 2, shape).astype(np.float32)
    (expected,), (actual,) = execute(before, [x]), execute(after, [x])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    return after


def test_convolutions_become_integer_and_relu_disappears() -> None:
    module, *_ = two_convolutions()
    ranges = {"x": (-3.0, 3.0), "hidden": (0.0, 6.0)}
    after = _assert_lowering_keeps_values(quantized(module, ranges))
    assert list(dtypes(after).values()) == ["int32", "int32"]
    assert "nn.relu" not in operators(after)
    # Outside the image is the zero point; behind relu that is 0, and nothing is subtracted.
    assert operators(after).count("nn.pad") == operators(after).count("subtract") == 1


def test_depthwise_with_an_asymmetric_operand() -> None:
    graph = Graph(1, 6, 6, 8)
    a = graph.conv("a", graph.input, array(3, 3, 1, 8), padding=1, groups=8)
    module = graph.module(graph.bind("y", relax.op.nn.relu(a)))
    after = _assert_lowering_keeps_values(quantized(module, ranges_of(module)))
    assert list(dtypes(after).values()) == ["int32"]


def test_products_of_two_computed_operands() -> None:
    module = attention()
    ranges = {"x": (-3, 3), "q": (-9, 11), "k": (-12, 8), "v": (-9, 9), "weights": (0, 1)}
    after = _assert_lowering_keeps_values(quantized(module, ranges))
    assert list(dtypes(after).values()) == ["int32"] * 5
    found = operators(after)
    # The zero point of q is subtracted from it; that of the softmax is none.
    assert found.count("quantize") == len(ranges)
    assert found.count("sum") == 0
    assert "permute_dims" in found


def test_the_sign_of_a_right_operand_is_left_alone() -> None:
    module = attention()
    ranges = {"x": (-3, 3), "q": (-9, 11), "k": (-12, 8), "v": (-9, 9), "weights": (0, 1)}
    assert_left_alone(MatchSignedness(X86), quantized(module, ranges))


def test_matmul_with_a_scale_per_column() -> None:
    graph = Graph(2, 3, 16)
    a = graph.bind("a", relax.op.matmul(graph.input, relax.const(array(16, 5))))
    module = graph.module(graph.bind("y", relax.op.sigmoid(a)))
    after = _assert_lowering_keeps_values(quantized(module, ranges_of(module)))
    assert list(dtypes(after).values()) == ["int32"]


def test_pool_concat_and_mean_run_on_integers() -> None:
    graph = Graph(1, 8, 8, 4)
    a = graph.conv("a", graph.input, array(1, 1, 4, 4))
    pooled = graph.bind("pooled", relax.op.nn.max_pool2d(a, (2, 2), (2, 2), layout="NHWC"))
    b = graph.conv("b", pooled, array(1, 1, 4, 4))
    both = graph.bind("both", relax.op.concat([pooled, b], 3))
    mean = graph.bind("mean", relax.op.mean(both, [1, 2]))
    y = graph.bind("y", relax.op.matmul(mean, relax.const(array(8, 3))))
    module = graph.module(graph.bind("z", relax.op.nn.relu(y)))
    after = _assert_lowering_keeps_values(quantized(module, ranges_of(module)))
    assert list(dtypes(after).values()) == [
        "int32",  # a
        "uint8",  # pooled
        "int32",  # b
        "uint8",  # both
        "int32",  # the sum of the mean
        "int32",  # y
    ]


@pytest.mark.parametrize(
    ("pool", "parts"),
    [
        ({"pool_size": (2, 2), "strides": (2, 2)}, ["nn.conv2d", "multiply"]),
        ({"pool_size": (3, 3), "padding": (1, 1)}, ["nn.conv2d", "subtract", "multiply"]),
        (
            {"pool_size": (3, 2), "strides": (2, 3), "padding": (1, 0, 2, 1), "ceil_mode": True},
            ["nn.conv2d", "subtract"],
        ),
        ({"pool_size": (3, 3), "padding": (1, 1), "count_include_pad": True}, ["nn.conv2d"]),
        (
            {
                "pool_size": (3, 3),
                "strides": (2, 2),
                "padding": (1, 1),
                "ceil_mode": True,
                "count_include_pad": True,
            },
            ["nn.conv2d"],
        ),
        ({"pool_size": (7, 8)}, ["sum"]),
        ({"pool_size": (2, 2), "dilation": (2, 2)}, ["nn.conv2d"]),
    ],
    ids=str,
)
def test_average_pools_are_sums_of_integers(pool, parts) -> None:
    graph = Graph(1, 7, 8, 5)
    a = graph.bind("a", relax.op.nn.avg_pool2d(graph.input, layout="NHWC", **pool))
    module = graph.module(graph.conv("y", a, array(1, 1, 5, 3)))
    # Other ranges than those of the input: with equal steps half the averages would be ties.
    ranges = {"x": (-3.0, 5.0), "a": (-2.71, 4.13)}
    after = _assert_lowering_keeps_values(quantized(module, ranges))
    found = operators(after)
    assert "nn.avg_pool2d" not in found
    assert all(part in found for part in parts)


@pytest.mark.parametrize(("outputs", "whole"), [((1, 1), True), ((4, 2), True), ((3, 3), False)])
def test_adaptive_pools_of_equal_windows_are_sums(outputs, whole) -> None:
    graph = Graph(2, 8, 8, 4)
    a = graph.bind("a", relax.op.nn.adaptive_avg_pool2d(graph.input, outputs, layout="NHWC"))
    module = graph.module(graph.conv("y", a, array(1, 1, 4, 3)))
    ranges = {"x": (-3.0, 5.0), "a": (-2.71, 4.13)}
    after = _assert_lowering_keeps_values(quantized(module, ranges))
    assert ("nn.adaptive_avg_pool2d" not in operators(after)) == whole


@pytest.mark.parametrize(("method", "moved"), [("nearest_neighbor", True), ("linear", False)])
def test_a_resize_reads_and_writes_integers(method, moved) -> None:
    graph = Graph(1, 4, 5, 8)
    size = relax.ShapeExpr([8, 10])
    resized = relax.op.image.resize2d(
        graph.input, size, layout="NHWC", method=method,
        coordinate_transformation_mode="asymmetric", rounding_method="floor",
    )  # fmt: skip
    module = graph.module(graph.conv("y", graph.bind("a", resized), array(1, 1, 8, 4)))
    ranges = {"x": (-3.0, 5.0), "a": (-2.71, 4.13)}
    placement = place(module, X86)
    assert placement.stored["a"].source == ("x" if moved else "a")
    after = _assert_lowering_keeps_values(quantized(module, ranges))
    found = operators(after)
    assert found.count("dequantize") == found.count("quantize") - 1 == (0 if moved else 1)


def test_split_runs_on_integers() -> None:
    graph = Graph(1, 4, 4, 8)
    a = graph.conv("a", graph.input, array(1, 1, 8, 8))
    parts = graph.bind("parts", relax.op.split(a, 2, 3))
    left = graph.bind("left", relax.TupleGetItem(parts, 0))
    right = graph.bind("right", relax.TupleGetItem(parts, 1))
    b = graph.conv("b", left, array(1, 1, 4, 4))
    c = graph.conv("c", right, array(1, 1, 4, 4))
    module = graph.module(graph.bind("y", relax.op.add(b, c)))
    after = _assert_lowering_keeps_values(quantized(module, ranges_of(module)))
    assert list(dtypes(after).values()) == ["int32"] * 3
    assert operators(after).count("split") == 1


@I.ir_module
class _Float:
    @R.function
    def main(x: R.Tensor((1, 4, 4, 3), "float32")) -> R.Tensor((1, 4, 4, 3), "float32"):
        with R.dataflow():
            a = R.nn.relu(x)
            y: R.Tensor((1, 4, 4, 3), "float32") = R.add(a, x)
            R.output(y)
        return y


@pytest.mark.parametrize("step", [SimplifyQuantization(X86), LowerIntegers(X86)])
def test_float_graphs_are_left_alone(step) -> None:
    assert_left_alone(step, _Float)


def test_a_clip_that_saturation_replaces_is_dropped_and_another_is_not() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "uint8"):
            with R.dataflow():
                a = R.clip(x, 0, 6)
                y = R.quantize(a, R.const(6.0 / 255, "float32"), R.const(0), out_dtype="uint8")
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "uint8"):
            with R.dataflow():
                y = R.quantize(x, R.const(6.0 / 255, "float32"), R.const(0), out_dtype="uint8")
                R.output(y)
            return y

    @I.ir_module
    class Wider:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "uint8"):
            with R.dataflow():
                a = R.clip(x, 0, 6)
                y = R.quantize(a, R.const(8.0 / 255, "float32"), R.const(0), out_dtype="uint8")
                R.output(y)
            return y

    assert_becomes(SimplifyQuantization(X86), Before, After)
    assert_left_alone(SimplifyQuantization(X86), Wider)


def test_signedness_follows_the_target() -> None:
    @I.ir_module
    class Signed:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                q = R.quantize(x, R.const(0.5, "float32"), R.const(3), out_dtype="int8")
                y = R.dequantize(q, R.const(0.5, "float32"), R.const(3))
                R.output(y)
            return y

    @I.ir_module
    class Unsigned:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                q = R.quantize(x, R.const(0.5, "float32"), R.const(131), out_dtype="uint8")
                y = R.dequantize(q, R.const(0.5, "float32"), R.const(131))
                R.output(y)
            return y

    assert_becomes(MatchSignedness(X86), Signed, Unsigned)
    assert_becomes(MatchSignedness(ARM), Unsigned, Signed)
