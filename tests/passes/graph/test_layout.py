"""Channels-last layout: conversion, cancelled transposes, absorbed ones."""

from __future__ import annotations

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

from tinsmith.passes.graph import AbsorbInputTransposes, CancelTransposes, ConvertLayout
from tinsmith.passes.graph.permutation import Permuted, reshape_stored

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def test_convolution_becomes_channels_last() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8, 8), "float32"), w: R.Tensor((6, 2, 3, 3), "float32")
        ) -> R.Tensor((1, 6, 4, 4), "float32"):
            with R.dataflow():
                y = R.nn.conv2d(x, w, strides=2, padding=1, groups=2)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8, 8), "float32"), w: R.Tensor((3, 3, 2, 6), "float32")
        ) -> R.Tensor((1, 6, 4, 4), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 2, 3, 1])
                b = R.nn.conv2d(
                    a,
                    w,
                    strides=2,
                    padding=1,
                    groups=2,
                    data_layout="NHWC",
                    kernel_layout="HWIO",
                )
                y = R.permute_dims(b, axes=[0, 3, 1, 2])
                R.output(y)
            return y

    w = _array(6, 2, 3, 3)
    assert_becomes(
        ConvertLayout(),
        with_weights(Before, w=w),
        with_weights(After, w=np.ascontiguousarray(w.transpose(2, 3, 1, 0))),
    )


def test_pooling_and_resizing_become_channels_last() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 3, 8, 8), "float32")) -> R.Tensor((1, 3, 6, 6), "float32"):
            with R.dataflow():
                a = R.nn.max_pool2d(x, pool_size=[3, 3], strides=[2, 2], padding=[1, 1, 1, 1])
                b = R.nn.avg_pool2d(a, pool_size=[2, 2], strides=[1, 1])
                c = R.image.resize2d(b, R.shape([6, 6]), layout="NCHW", method="linear")
                R.output(c)
            return c

    after = assert_computes_the_same(ConvertLayout(), Module)
    assert operators(CancelTransposes()(after)) == [
        "permute_dims",
        "nn.max_pool2d",
        "nn.avg_pool2d",
        "image.resize2d",
        "permute_dims",
    ]


def test_transposes_cancel_through_elementwise_and_concat() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 16), "float32"), c: R.Tensor((16, 1, 1), "float32")
        ) -> R.Tensor((1, 8, 8, 32), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 3, 1, 2])
                b = R.add(a, c)
                d = R.concat((b, a), axis=1)
                y = R.permute_dims(d, axes=[0, 2, 3, 1])
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 16), "float32"), c: R.Tensor((1, 1, 1, 16), "float32")
        ) -> R.Tensor((1, 8, 8, 32), "float32"):
            with R.dataflow():
                b = R.add(x, c)
                y = R.concat((b, x), axis=3)
                R.output(y)
            return y

    c = _array(16, 1, 1)
    assert_becomes(
        CancelTransposes(), with_weights(Before, c=c), with_weights(After, c=c.reshape(1, 1, 1, 16))
    )


def test_transposes_of_unit_axes_become_reshapes() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 1, 1, 16), "float32")) -> R.Tensor((1, 16, 1, 1), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 3, 1, 2])
                y = R.nn.relu(a)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 1, 1, 16), "float32")) -> R.Tensor((1, 16, 1, 1), "float32"):
            with R.dataflow():
                a = R.nn.relu(x)
                y = R.reshape(a, R.shape([1, 16, 1, 1]))
                R.output(y)
            return y

    assert_becomes(CancelTransposes(), Before, After)


def test_a_lone_transpose_stays() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")) -> R.Tensor((2, 4, 4), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 2, 1])
                y = R.matmul(a, x)
                R.output(y)
            return y

    assert_left_alone(CancelTransposes(), Module)


_NHWC = (2, 5, 7, 6)
_THROUGH = {
    "scalar": lambda x: relax.op.multiply(x, relax.const(2.0)),
    "row": lambda x: relax.op.add(x, relax.const(_array(7))),
    "channel": lambda x: relax.op.subtract(relax.const(_array(6, 1, 1)), x),
    "full": lambda x: relax.op.maximum(x, relax.const(_array(2, 6, 5, 7))),
    "where": lambda x: relax.op.where(relax.const(_array(6, 1, 1) > 0), x, relax.const(1.0)),
    "clip": lambda x: relax.op.clip(x, -1.0, 1.0),
    "sum": lambda x: relax.op.sum(x, [1, 3]),
    "mean": lambda x: relax.op.mean(x, [2, 3], keepdims=True),
    "max": lambda x: relax.op.max(x, [-1]),
    "argmax": lambda x: relax.op.argmax(x, 1),
    "softmax_channels": lambda x: relax.op.nn.softmax(x, 1),
    "softmax_rows": lambda x: relax.op.nn.softmax(x, -1),
    "layer_norm": lambda x: relax.op.nn.layer_norm(
        x, relax.const(_array(7)), relax.const(_array(7)), axes=[-1]
    ),
    "prelu": lambda x: relax.op.nn.prelu(x, relax.const(_array(6)), 1),
    "pad": lambda x: relax.op.nn.pad(x, [0, 0, 1, 0, 0, 2, 3, 1], pad_value=0.5),
    "slice": lambda x: relax.op.strided_slice(x, [1, 3], [1, 0], [5, 7], [2, 3]),
    "split": lambda x: relax.TupleGetItem(relax.op.split(x, [2, 3], 1), 1),
    "flatten_map": lambda x: relax.op.reshape(x, (2, 6, 35)),
    "flatten": lambda x: relax.op.reshape(x, (2, 210)),
    "split_channels": lambda x: relax.op.reshape(x, (2, 3, 2, 5, 7)),
    "broadcast_to": lambda x: relax.op.broadcast_to(x, (2, 6, 5, 7)),
    "quantize_by_its_range": lambda x: relax.op.astype(
        relax.op.quantize(
            x,
            relax.op.divide(relax.op.max(relax.op.abs(x)), relax.const(100.0)),
            relax.const(0, "int8"),
            -1,
            "int8",
        ),
        "float32",
    ),
    "permute": lambda x: relax.op.permute_dims(x, [1, 3, 0, 2]),
}


@pytest.mark.parametrize("name", sorted(_THROUGH))
def test_every_rule_computes_the_same(name: str) -> None:
    x = relax.Var("x", relax.TensorType(_NHWC, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            nchw = builder.emit(relax.op.permute_dims(x, [0, 3, 1, 2]))
            middle = builder.emit(_THROUGH[name](nchw))
            result = builder.emit_output(relax.op.multiply(middle, middle))
        builder.emit_func_output(result)
    assert_computes_the_same(CancelTransposes(), builder.get())


def test_operands_stored_differently_cost_one_transpose() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(
            x: R.Tensor((1, 8, 8, 16), "float32"), y: R.Tensor((1, 16, 8, 8), "float32")
        ) -> R.Tensor((1, 8, 8, 16), "float32"):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 3, 1, 2])
                b = R.add(a, y)
                c = R.nn.relu(b)
                d = R.permute_dims(c, axes=[0, 2, 3, 1])
                R.output(d)
            return d

    after = assert_computes_the_same(CancelTransposes(), Module)
    assert operators(after) == ["permute_dims", "add", "nn.relu"]


def test_reshape_of_a_permuted_tensor_keeps_elements_in_place() -> None:
    stored = relax.Var("x", relax.TensorType((1, 7, 5, 16), "float32"))
    value = Permuted(stored, (0, 3, 1, 2))
    assert reshape_stored(value, (1, 16, 35)) == ((1, 35, 16), (0, 2, 1))
    assert reshape_stored(value, (1, 4, 4, 7, 5)) == ((1, 7, 5, 4, 4), (0, 3, 4, 1, 2))
    # Channels and rows in one axis: elements would have to move.
    assert reshape_stored(value, (1, 112, 5)) is None


def _image_convolution(channels: int) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType((1, channels, 8, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
            w = relax.const(_array(3, 3, channels, 8))
            y = relax.op.nn.conv2d(a, w, padding=1, data_layout="NHWC", kernel_layout="HWIO")
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.get()


def test_convolution_of_few_channels_absorbs_the_transpose() -> None:
    after = AbsorbInputTransposes()(_image_convolution(3))
    assert operators(after) == ["nn.conv2d"]
    attrs = after["main"].body.blocks[0].bindings[0].value.attrs
    assert (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) == ("NCHW", "HWIO", "NHWC")


def test_convolution_of_many_channels_does_not() -> None:
    assert_left_alone(AbsorbInputTransposes(), _image_convolution(8))
