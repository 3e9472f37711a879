"""Scales, zero points and biases between integers as one factor and one offset."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from quantize_checks import Graph, array, lowered, quantized, ranges_of
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import assert_becomes, assert_left_alone, execute, operators

from tinsmith.passes.quantize.fold_requantization import FoldRequantization


def _assert_codes_agree(before: tvm.IRModule, count: int = 1) -> tvm.IRModule:
    """`before` ends in codes; folding moves hardly any, and none by more than one."""
    after = FoldRequantization()(before)
    relax.analysis.well_formed(after)
    shape = [int(n) for n in before["main"].params[0].ty.shape.values]
    x = np.random.default_rng(0).normal(0.5, 2, shape).astype(np.float32)
    (expected,), (actual,) = execute(before, [x]), execute(after, [x])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    assert np.mean(np.abs(actual - expected) > 1e-5 * np.abs(expected).max()) <= 0.01
    return after


def test_one_factor_and_one_offset_remain() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8"), r: R.Tensor((1, 2), "uint8")) -> R.Tensor(
            (1, 2), "uint8"
        ):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                b = R.subtract(a, R.const([[10, 20]], "int32"))
                c = R.multiply(R.astype(b, "float32"), R.const([[0.5, 0.25]], "float32"))
                d = R.add(c, R.const([[1.0, 2.0]], "float32"))
                s = R.dequantize(r, R.const(0.125, "float32"), R.const(8, "int32"), axis=-1)
                e = R.nn.relu(R.add(d, s))
                y = R.quantize(
                    e, R.const(0.5, "float32"), R.const(3, "int32"), out_dtype="uint8", axis=-1
                )
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8"), r: R.Tensor((1, 2), "uint8")) -> R.Tensor(
            (1, 2), "uint8"
        ):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                af = R.astype(a, "float32")
                am = R.multiply(af, R.const([[1.0, 0.5]], "float32"))
                # (1 - 10 * 0.5 - 8 * 0.125) / 0.5 and (2 - 20 * 0.25 - 8 * 0.125) / 0.5
                ao = R.add(am, R.const([[-10.0, -8.0]], "float32"))
                rf = R.astype(r, "float32")
                rm = R.multiply(rf, R.const([[0.25]], "float32"))
                total = R.add(ao, rm)
                limited = R.nn.relu(total)
                shifted = R.add(limited, R.const([[3.0]], "float32"))
                y = R.quantize(
                    shifted,
                    R.const(1.0, "float32"),
                    R.const(0, "int32"),
                    out_dtype="uint8",
                    axis=-1,
                )
                R.output(y)
            return y

    assert_becomes(FoldRequantization(), Before, After)


def test_a_bias_of_whole_units_is_added_as_an_integer() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8")) -> R.Tensor((1, 2), "uint8"):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                b = R.subtract(a, R.const([[10, 20]], "int32"))
                c = R.multiply(R.astype(b, "float32"), R.const([[0.1, 0.3]], "float32"))
                d = R.add(c, R.const([[70.0, -21.0]], "float32"))
                y = R.quantize(
                    d, R.const(0.5, "float32"), R.const(3, "int32"), out_dtype="uint8", axis=-1
                )
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8")) -> R.Tensor((1, 2), "uint8"):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                # 70 / 0.1 - 10 and -21 / 0.3 - 20
                b = R.add(a, R.const([[690, -90]], "int32"))
                c = R.multiply(R.astype(b, "float32"), R.const([[0.2, 0.6]], "float32"))
                y = R.quantize(
                    c, R.const(1.0, "float32"), R.const(3, "int32"), out_dtype="uint8", axis=-1
                )
                R.output(y)
            return y

    assert_becomes(FoldRequantization(), Before, After)


def test_a_sum_of_two_stored_tensors_has_two_factors() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8"), r: R.Tensor((1, 4), "uint8")) -> R.Tensor(
            (1, 4), "uint8"
        ):
            with R.dataflow():
                a = R.dequantize(x, R.const(0.25, "float32"), R.const(4, "int32"), axis=-1)
                b = R.dequantize(r, R.const(0.125, "float32"), R.const(8, "int32"), axis=-1)
                y = R.quantize(
                    R.add(a, b),
                    R.const(0.5, "float32"),
                    R.const(3, "int32"),
                    out_dtype="uint8",
                    axis=-1,
                )
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8"), r: R.Tensor((1, 4), "uint8")) -> R.Tensor(
            (1, 4), "uint8"
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float32"), R.const([[0.5]], "float32"))
                # 3 - 4 * 0.5 - 8 * 0.25
                shifted = R.add(a, R.const([[-1.0]], "float32"))
                b = R.multiply(R.astype(r, "float32"), R.const([[0.25]], "float32"))
                y = R.quantize(
                    R.add(shifted, b),
                    R.const(1.0, "float32"),
                    R.const(0, "int32"),
                    out_dtype="uint8",
                    axis=-1,
                )
                R.output(y)
            return y

    assert_becomes(FoldRequantization(), Before, After)


def test_signed_codes_are_computed_as_the_unsigned_ones() -> None:
    """All float32 numbers are those of `test_one_factor_and_one_offset_remain`."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "int8"), r: R.Tensor((1, 2), "int8")) -> R.Tensor(
            (1, 2), "int8"
        ):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                # 128 times the sums of weights, 2 and 12, less than 10 and 20
                b = R.subtract(a, R.const([[-246, -1516]], "int32"))
                c = R.multiply(R.astype(b, "float32"), R.const([[0.5, 0.25]], "float32"))
                d = R.add(c, R.const([[1.0, 2.0]], "float32"))
                s = R.dequantize(r, R.const(0.125, "float32"), R.const(-120, "int32"), axis=-1)
                e = R.nn.relu(R.add(d, s))
                y = R.quantize(
                    e, R.const(0.5, "float32"), R.const(-125, "int32"), out_dtype="int8", axis=-1
                )
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4), "int8"), r: R.Tensor((1, 2), "int8")) -> R.Tensor(
            (1, 2), "int8"
        ):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                au = R.add(a, R.const([[256, 1536]], "int32"))
                af = R.astype(au, "float32")
                am = R.multiply(af, R.const([[1.0, 0.5]], "float32"))
                ao = R.add(am, R.const([[-10.0, -8.0]], "float32"))
                wide = R.astype(r, "int32")
                ru = R.add(wide, R.const([[128]], "int32"))
                rf = R.astype(ru, "float32")
                rm = R.multiply(rf, R.const([[0.25]], "float32"))
                total = R.add(ao, rm)
                limited = R.nn.relu(total)
                shifted = R.add(limited, R.const([[3.0]], "float32"))
                y = R.quantize(
                    shifted,
                    R.const(1.0, "float32"),
                    R.const(-128, "int32"),
                    out_dtype="int8",
                    axis=-1,
                )
                R.output(y)
            return y

    assert_becomes(FoldRequantization(), Before, After)


@pytest.mark.parametrize("bound", [None, "relu", "clip", "per channel"])
def test_a_residual_block(bound: str | None) -> None:
    graph = Graph(1, 7, 5, 6)
    a = graph.conv("a", graph.input, array(3, 3, 6, 9), padding=1)
    a = graph.bind("ab", relax.op.add(a, relax.const(array(1, 1, 1, 9))))
    b = graph.conv("b", a, array(1, 1, 9, 9))
    total = graph.bind("total", relax.op.add(a, b))
    if bound == "relu":
        total = graph.bind("bounded", relax.op.nn.relu(total))
    elif bound == "clip":
        total = graph.bind("bounded", relax.op.clip(total, -1.0, 2.0))
    elif bound == "per channel":
        limits = relax.const(np.abs(array(1, 1, 1, 9)) + 1)
        total = graph.bind("bounded", relax.op.minimum(total, limits))
    module = graph.module(graph.conv("c", total, array(1, 1, 9, 3)))
    after = _assert_codes_agree(lowered(quantized(module, ranges_of(module))))
    scales = [
        float(call.args[1].value.numpy())
        for call in _calls(after, "relax.quantize")
        if call.args[0] not in after["main"].params
    ]
    assert scales == [1.0] * len(scales) and len(scales) == 2


def test_a_negative_factor_is_no_obstacle_without_a_bound() -> None:
    graph = Graph(1, 4, 4, 3)
    a = graph.conv("a", graph.input, array(1, 1, 3, 4))
    flipped = graph.bind("flipped", relax.op.multiply(a, relax.const(-array(1, 1, 1, 4))))
    module = graph.module(graph.conv("c", flipped, array(1, 1, 4, 2)))
    _assert_codes_agree(lowered(quantized(module, ranges_of(module))))


def test_what_turns_a_bound_around_is_left_alone() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 4), "uint8")) -> R.Tensor((1, 2), "uint8"):
            with R.dataflow():
                a: R.Tensor((1, 2), "int32") = R.matmul(
                    x, R.const([[1, 2], [3, -4], [5, 6], [-7, 8]], "int8"), out_dtype="int32"
                )
                b = R.nn.relu(R.astype(a, "float32"))
                c = R.multiply(b, R.const([[-0.5, 0.25]], "float32"))
                y = R.quantize(
                    c, R.const(0.5, "float32"), R.const(3, "int32"), out_dtype="uint8", axis=-1
                )
                R.output(y)
            return y

    assert_left_alone(FoldRequantization(), Module)


def test_without_a_product_nothing_is_folded() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "uint8"):
            with R.dataflow():
                a = R.nn.relu(R.add(x, R.const([[1.0, 2.0, 3.0, 4.0]], "float32")))
                y = R.quantize(
                    a, R.const(0.5, "float32"), R.const(3, "int32"), out_dtype="uint8", axis=-1
                )
                R.output(y)
            return y

    assert_left_alone(FoldRequantization(), Module)


def test_a_value_that_others_read_is_kept() -> None:
    graph = Graph(1, 4, 4, 3)
    a = graph.conv("a", graph.input, array(1, 1, 3, 4))
    soft = graph.bind("soft", relax.op.sigmoid(a))
    b = graph.conv("b", a, array(1, 1, 4, 4))
    module = graph.module(graph.bind("y", relax.op.multiply(soft, b)))
    after = _assert_codes_agree(lowered(quantized(module, ranges_of(module))))
    assert "sigmoid" in operators(after)


def _calls(module: tvm.IRModule, name: str) -> list[relax.Call]:
    return [
        binding.value
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op.name == name
    ]
