"""Recognising composites that were spelled out, and kernels that were made too early."""

from __future__ import annotations

import numpy as np
import tvm
from graph_checks import (
    assert_becomes,
    assert_computes_the_same,
    assert_left_alone,
    operators,
    with_weights,
)
from tvm import relax, topi
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import RaisePrimitives, RecognizeComposites

_RANDOM = np.random.default_rng(0)


def _row(width: int) -> np.ndarray:
    return _RANDOM.standard_normal(width).astype("float32")


@I.ir_module
class SpelledOutGelu:
    @R.function
    def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
        with R.dataflow():
            a = R.divide(x, R.const(1.41421354, "float32"))
            b = R.erf(a)
            c = R.add(b, R.const(1.0, "float32"))
            d = R.multiply(x, c)
            e = R.multiply(d, R.const(0.5, "float32"))
            R.output(e)
        return e


@I.ir_module
class Gelu:
    @R.function
    def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
        with R.dataflow():
            e = R.nn.gelu(x)
            R.output(e)
        return e


def test_gelu() -> None:
    assert_becomes(RecognizeComposites(), SpelledOutGelu, Gelu)
    assert_computes_the_same(RecognizeComposites(), SpelledOutGelu)


def test_gelu_with_factors_in_another_order() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                a = R.multiply(x, R.const(0.70710677, "float32"))
                b = R.erf(a)
                c = R.add(b, R.const(1.0, "float32"))
                h = R.multiply(x, R.const(0.5, "float32"))
                e = R.multiply(h, c)
                R.output(e)
            return e

    assert_becomes(RecognizeComposites(), Before, Gelu)


def test_another_constant_is_no_gelu() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                a = R.divide(x, R.const(1.5, "float32"))
                b = R.erf(a)
                c = R.add(b, R.const(1.0, "float32"))
                d = R.multiply(x, c)
                e = R.multiply(d, R.const(0.5, "float32"))
                R.output(e)
            return e

    assert_left_alone(RecognizeComposites(), Module)


@I.ir_module
class SpelledOutLayerNorm:
    @R.function
    def main(
        x: R.Tensor((2, 3, 8), "float32"),
        gamma: R.Tensor((8,), "float32"),
        beta: R.Tensor((8,), "float32"),
    ) -> R.Tensor((2, 3, 8), "float32"):
        with R.dataflow():
            m = R.mean(x, axis=[-1], keepdims=True)
            d = R.subtract(x, m)
            s = R.multiply(d, d)
            v = R.mean(s, axis=[-1], keepdims=True)
            e = R.add(v, R.const(1e-5, "float32"))
            r = R.sqrt(e)
            n = R.divide(d, r)
            g = R.multiply(n, gamma)
            y = R.add(g, beta)
            R.output(y)
        return y


def test_layer_norm() -> None:
    module = with_weights(SpelledOutLayerNorm, gamma=_row(8), beta=_row(8))
    after = assert_computes_the_same(RecognizeComposites(), module)
    assert operators(after) == ["nn.layer_norm"]


def test_layer_norm_whose_variance_is_used_elsewhere_is_left_alone() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 8), "float32"), p: R.Tensor((8,), "float32")) -> R.Tuple(
            R.Tensor((2, 8), "float32"), R.Tensor((2, 1), "float32")
        ):
            with R.dataflow():
                m = R.mean(x, axis=[-1], keepdims=True)
                d = R.subtract(x, m)
                s = R.multiply(d, d)
                v = R.mean(s, axis=[-1], keepdims=True)
                e = R.add(v, R.const(1e-5, "float32"))
                r = R.sqrt(e)
                n = R.divide(d, r)
                g = R.multiply(n, p)
                y = R.add(g, p)
                z = (y, v)
                R.output(z)
            return z

    assert_left_alone(RecognizeComposites(), with_weights(Module, p=_row(8)))


def _emitted(name: str, compute, shape=(1, 3, 4, 4)) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_te(compute, x, primfunc_name_hint=name)
            y = builder.emit_output(relax.op.nn.relu(y))
        builder.emit_func_output(y)
    return builder.get()


def test_kernels_get_their_operator_back() -> None:
    pad = _emitted("pad", lambda t: topi.nn.pad(t, [0, 0, 1, 0], [0, 0, 2, 3], 0.5))
    after = assert_computes_the_same(RaisePrimitives(), pad)
    assert operators(after) == ["nn.pad", "nn.relu"]
    attrs = after["main"].body.blocks[0].bindings[0].value.attrs
    assert [int(width) for width in attrs.pad_width] == [0, 0, 0, 0, 1, 2, 0, 3]
    assert float(attrs.pad_value) == 0.5


def test_elementwise_kernels_get_their_operator_back() -> None:
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_te(topi.maximum, x, relax.const(0.5))
            y = builder.emit_te(topi.minimum, y, x)
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    after = assert_computes_the_same(RaisePrimitives(), builder.get())
    assert operators(after) == ["maximum", "minimum"]


def test_kernels_that_only_have_the_name_are_left_alone() -> None:
    imposters = [
        _emitted("pad", lambda t: topi.nn.mirror_pad(t, [0, 0, 1, 1], [0, 0, 1, 1])),
        _emitted("pad", topi.nn.relu),
        _emitted("maximum", lambda t: topi.add(t, t)),
    ]
    for module in imposters:
        assert_left_alone(RaisePrimitives(), module)
