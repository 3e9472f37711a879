"""Canonical form."""

from __future__ import annotations

import numpy as np
from graph_checks import assert_becomes, assert_computes_the_same, assert_left_alone, operators
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import Canonicalize
from tinsmith.passes.graph.tensors import operator_name


def test_joins_and_drops_shape_changes() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 1, 1), "float32")) -> R.Tensor((8, 1), "float32"):
            with R.dataflow():
                a = R.squeeze(x, axis=[2, 3])
                b = R.expand_dims(a, axis=0)
                c = R.reshape(b, R.shape([1, 8]))
                d = R.astype(c, "float32")
                e = R.permute_dims(d, axes=[1, 0])
                R.output(e)
            return e

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 8, 1, 1), "float32")) -> R.Tensor((8, 1), "float32"):
            with R.dataflow():
                e = R.reshape(x, R.shape([8, 1]))
                R.output(e)
            return e

    assert_becomes(Canonicalize(), Before, After)


def test_joins_permutations_and_drops_the_identity() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((2, 3, 4), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[2, 0, 1])
                b = R.permute_dims(a, axes=[1, 2, 0])
                c = R.nn.relu(b)
                R.output(c)
            return c

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((2, 3, 4), "float32"):
            with R.dataflow():
                c = R.nn.relu(x)
                R.output(c)
            return c

    assert_becomes(Canonicalize(), Before, After)


def test_bounds_become_clip_and_constants_move_right() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8), "float32")) -> R.Tensor((1, 8), "float32"):
            with R.dataflow():
                a = R.maximum(R.const(0.0, "float32"), x)
                b = R.minimum(a, R.const(6.0, "float32"))
                c = R.add(R.const(1.0, "float32"), b)
                d = R.multiply(c, R.const(1.0, "float32"))
                R.output(d)
            return d

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 8), "float32")) -> R.Tensor((1, 8), "float32"):
            with R.dataflow():
                b = R.clip(x, R.prim_value(0.0), R.prim_value(6.0))
                c = R.add(b, R.const(1.0, "float32"))
                R.output(c)
            return c

    assert_becomes(Canonicalize(), Before, After)


def test_dropout_power_and_global_pooling() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32")) -> R.Tensor((1, 8, 1, 1), "float32"):
            with R.dataflow():
                a = R.nn.dropout(x, rate=0.5)
                b = a[0]
                c = R.power(b, R.const(2.0, "float32"))
                d = R.nn.adaptive_avg_pool2d(c, output_size=[1, 1])
                R.output(d)
            return d

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32")) -> R.Tensor((1, 8, 1, 1), "float32"):
            with R.dataflow():
                c = R.multiply(x, x)
                d = R.mean(c, axis=[2, 3], keepdims=True)
                R.output(d)
            return d

    assert_becomes(Canonicalize(), Before, After)


def test_leaves_alone_what_changes_values_or_shapes() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 8), "float32"), y: R.Tensor((4, 8), "int32")) -> R.Tuple(
            R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "int32")
        ):
            with R.dataflow():
                a = R.add(x, R.const(0.0, "float32"))
                b = R.broadcast_to(a, R.shape([4, 8]))
                c = R.maximum(y, R.const(0, "int32"))
                d = (b, c)
                R.output(d)
            return d

    assert_left_alone(Canonicalize(), Module)


def test_division_by_nothing_is_multiplication_by_infinity() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                a = R.divide(x, R.const(0.0, "float32"))
                R.output(a)
            return a

    after = Canonicalize()(Module)
    assert operators(after) == ["multiply"]
    x = np.array([1.0, -2.0, 0.0, np.nan], np.float32)
    constant = after["main"].body.blocks[0].bindings[0].value.args[1].value.numpy()
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(x * constant, x / np.float32(0.0))


def test_crossed_bounds_stay_what_they_are() -> None:
    """min(max(x, 6), 0) is 0 everywhere; a clip with its bounds swapped is not defined."""

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 8), "float32")) -> R.Tensor((1, 8), "float32"):
            with R.dataflow():
                a = R.maximum(x, R.const(6.0, "float32"))
                b = R.minimum(a, R.const(0.0, "float32"))
                R.output(b)
            return b

    after = assert_computes_the_same(Canonicalize(), Module)
    assert operators(after) == ["maximum", "minimum"]


def test_code_outside_dataflow_blocks_is_taken_in() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((8,), "float32"):
            a = R.reshape(x, R.shape([4, 2]))
            return R.reshape(a, R.shape([8]))

    assert operators(Canonicalize()(Before)) == ["reshape"]


def test_many_tensors_are_joined_group_by_group() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((130, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            rows = [builder.emit(relax.op.strided_slice(x, [0], [i], [i + 1])) for i in range(130)]
            y = builder.emit_output(relax.op.concat(rows[::-1], axis=1))
        builder.emit_func_output(y)
    after = Canonicalize()(builder.get())
    bindings = after["main"].body.blocks[0].bindings
    joined = [b.value for b in bindings if operator_name(b.value) == "relax.concat"]
    assert [len(call.args[0].fields) for call in joined] == [64, 64, 2, 3]
    assert_computes_the_same(Canonicalize(), builder.get())
