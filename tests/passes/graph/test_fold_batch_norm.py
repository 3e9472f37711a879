"""Affine maps per channel folded into weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from graph_checks import (
    assert_becomes,
    assert_computes_the_same,
    assert_left_alone,
    operators,
    with_weights,
)
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import FoldBatchNorm

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def _positive(*shape: int) -> np.ndarray:
    return _RANDOM.uniform(0.5, 2.0, shape).astype("float32")


def test_batch_norm_goes_into_weights_and_bias() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 6, 6), "float32"),
            w: R.Tensor((8, 3, 3, 3), "float32"),
            gamma: R.Tensor((8,), "float32"),
            beta: R.Tensor((8,), "float32"),
            mean: R.Tensor((8,), "float32"),
            variance: R.Tensor((8,), "float32"),
        ) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                t = R.nn.batch_norm(
                    c, gamma, beta, mean, variance, axis=1, epsilon=1e-3, training=False
                )
                y = t[0]
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 3, 6, 6), "float32"),
            w: R.Tensor((8, 3, 3, 3), "float32"),
            b: R.Tensor((1, 8, 1, 1), "float32"),
        ) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                c = R.nn.conv2d(x, w, padding=1)
                y = R.add(c, b)
                R.output(y)
            return y

    w, gamma, beta, mean, variance = (
        _array(8, 3, 3, 3),
        _array(8),
        _array(8),
        _array(8),
        _positive(8),
    )
    # Float64, with the epsilon as the float32 that the attribute holds.
    scale = gamma.astype("float64") / np.sqrt(variance.astype("float64") + 1e-3)
    shift = beta.astype("float64") - mean.astype("float64") * scale
    before = with_weights(Before, w=w, gamma=gamma, beta=beta, mean=mean, variance=variance)
    result = FoldBatchNorm()(before)
    folded = result["main"].body.blocks[0].bindings
    np.testing.assert_allclose(
        folded[0].value.args[1].value.numpy(), w * scale.reshape(-1, 1, 1, 1), rtol=1e-6
    )
    np.testing.assert_allclose(
        folded[1].value.args[1].value.numpy().reshape(-1), shift, rtol=1e-5, atol=1e-6
    )
    after = with_weights(
        After, w=folded[0].value.args[1].value.numpy(), b=folded[1].value.args[1].value.numpy()
    )
    assert_becomes(FoldBatchNorm(), before, after)


def _linear_module(kind: str, groups: int = 1) -> tvm.IRModule:
    """A linear operator, then `* s + t - u` and `/ v` by constants per channel, then a relu."""
    builder = relax.BlockBuilder()
    shapes = {
        "conv1d": (2, 4, 7),
        "conv2d": (2, 4, 6, 6),
        "conv2d_transpose": (2, 4, 5, 5),
        "matmul": (2, 3, 4),
    }
    x = relax.Var("x", relax.TensorType(shapes[kind], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            if kind == "conv1d":
                y = relax.op.nn.conv1d(x, relax.const(_array(6, 4 // groups, 3)), groups=groups)
            elif kind == "conv2d":
                y = relax.op.nn.conv2d(x, relax.const(_array(6, 4 // groups, 3, 3)), groups=groups)
            elif kind == "conv2d_transpose":
                w = relax.const(_array(4, 6 // groups, 3, 3))
                y = relax.op.nn.conv2d_transpose(x, w, strides=2, groups=groups)
            else:
                y = relax.op.matmul(x, relax.const(_array(4, 6)))
            y = builder.emit(y)
            rank = len(y.ty.shape)
            channel = [1] * rank
            channel[rank - 1 if kind == "matmul" else 1] = 6
            y = builder.emit(relax.op.multiply(y, relax.const(_array(*channel))))
            y = builder.emit(relax.op.add(y, relax.const(_array(*channel[1:]))))
            y = builder.emit(relax.op.subtract(y, relax.const(np.float32(0.5))))
            y = builder.emit(relax.op.divide(y, relax.const(_positive(*channel))))
            y = builder.emit_output(relax.op.nn.relu(y))
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("conv1d", 1),
        ("conv2d", 1),
        ("conv2d", 2),
        ("conv2d_transpose", 1),
        ("conv2d_transpose", 2),
        ("matmul", 1),
    ],
)
def test_chains_collapse_into_one_addition(kind: str, groups: int) -> None:
    after = assert_computes_the_same(FoldBatchNorm(), _linear_module(kind, groups))
    assert operators(after) == [kind if kind == "matmul" else f"nn.{kind}", "add", "nn.relu"]


def test_batch_norm_after_nothing_linear_becomes_arithmetic() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 4, 3, 3), "float32"), p: R.Tensor((4,), "float32")) -> R.Tensor(
            (1, 4, 3, 3), "float32"
        ):
            with R.dataflow():
                r = R.nn.relu(x)
                t = R.nn.batch_norm(r, p, p, p, p, axis=1, training=False)
                y = t[0]
                R.output(y)
            return y

    after = FoldBatchNorm()(with_weights(Module, p=_positive(4)))
    assert operators(after) == ["nn.relu", "multiply", "add"]


def test_shared_results_and_full_tensors_are_left_alone() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(
            x: R.Tensor((1, 4, 3, 3), "float32"),
            w: R.Tensor((4, 4, 1, 1), "float32"),
            s: R.Tensor((1, 4, 1, 1), "float32"),
            f: R.Tensor((1, 4, 3, 3), "float32"),
        ) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                shared = R.nn.conv2d(x, w)
                scaled = R.multiply(shared, s)
                full = R.nn.conv2d(scaled, w)
                a = R.multiply(full, f)
                b = R.add(a, shared)
                R.output(b)
            return b

    module = with_weights(Module, w=_array(4, 4, 1, 1), s=_array(1, 4, 1, 1), f=_array(1, 4, 3, 3))
    assert_left_alone(FoldBatchNorm(), module)


@pytest.mark.parametrize("first", [relax.op.multiply, relax.op.add])
def test_what_makes_a_result_larger_is_left_alone(first: Callable[..., relax.Expr]) -> None:
    """(2, 1, 4) `first` (1, 3, 1) is (2, 3, 4): a convolution's weights cannot do that."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv1d(x, relax.const(_array(1, 4, 2))))
            y = builder.emit(first(y, relax.const(_array(1, 3, 1))))
            y = builder.emit_output(relax.op.multiply(y, relax.const(_array(1, 3, 1))))
        builder.emit_func_output(y)
    assert_left_alone(FoldBatchNorm(), builder.get())


def test_weights_that_are_inputs_are_left_alone() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(
            x: R.Tensor((1, 4, 3, 3), "float32"), w: R.Tensor((4, 4, 1, 1), "float32")
        ) -> R.Tensor((1, 4, 3, 3), "float32"):
            with R.dataflow():
                c = R.nn.conv2d(x, w)
                y = R.multiply(c, R.const(2.0, "float32"))
                R.output(y)
            return y

    assert_left_alone(FoldBatchNorm(), Module)


@I.ir_module
class Scaled:
    @R.function
    def main(
        x: R.Tensor((2, 40), "float32"),
        w: R.Tensor((40, 50), "float32"),
        s: R.Tensor((50,), "float32"),
    ) -> R.Tensor((2, 50), "float32"):
        with R.dataflow():
            p = R.matmul(x, w)
            y = R.multiply(p, s)
            R.output(y)
        return y


def test_factors_are_not_folded_into_halves() -> None:
    """The products would not be halves, and take twice the memory."""
    halves = _array(40, 50).astype(np.float16).astype(np.float32)
    scale = _RANDOM.uniform(0.5, 2.0, 50).astype(np.float32)
    assert_left_alone(FoldBatchNorm(), with_weights(Scaled, w=halves, s=scale))
    folded = FoldBatchNorm()(with_weights(Scaled, w=_array(40, 50), s=scale))
    assert operators(folded) == ["matmul"]
