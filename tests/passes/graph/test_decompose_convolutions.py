"""Transposed and one-dimensional convolutions as ordinary ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_checks import (
    assert_computes_the_same,
    assert_left_alone,
    operators,
)
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import DecomposeConvolutions
from tinsmith.passes.graph.subpixel import subpixel_axis, subpixel_weights

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def _module(shape: tuple[int, ...], weights: np.ndarray, operator: str, **attrs: object):
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            make = getattr(relax.op.nn, operator)
            y = builder.emit_output(builder.emit(make(x, relax.const(weights), **attrs)))
        builder.emit_func_output(y)
    return builder.get()


def test_stride_equal_to_kernel_is_a_pointwise_convolution() -> None:
    module = _module((1, 8, 5, 6), _array(8, 4, 2, 2), "conv2d_transpose", strides=2)
    after = assert_computes_the_same(DecomposeConvolutions(), module)
    assert operators(after) == [
        "nn.conv2d",
        "permute_dims",
        "reshape",
        "permute_dims",
        "reshape",
        "permute_dims",
    ]
    weights = after["main"].body.blocks[0].bindings[0].value.args[1]
    assert weights.value.shape == (16, 8, 1, 1)


@pytest.mark.parametrize(
    ("kernel", "attrs"),
    [
        ((3, 3), {"strides": 2, "padding": 1, "output_padding": 1}),
        ((4, 4), {"strides": 2, "padding": 1}),
        ((3, 2), {"strides": (1, 3), "padding": (1, 0, 0, 1)}),
        ((2, 2), {"strides": 3}),
        ((3, 3), {"strides": 2, "dilation": 2, "padding": (1, 2, 0, 1)}),
        ((3, 3), {}),
    ],
    ids=["k3s2", "k4s2", "mixed", "gaps", "dilated", "stride1"],
)
def test_transposed_convolutions(kernel: tuple[int, int], attrs: dict) -> None:
    module = _module((2, 4, 5, 4), _array(4, 3, *kernel), "conv2d_transpose", **attrs)
    after = assert_computes_the_same(DecomposeConvolutions(), module)
    assert "nn.conv2d_transpose" not in operators(after)


def test_grouped_transposed_convolution() -> None:
    module = _module((1, 4, 3, 5), _array(4, 3, 3, 3), "conv2d_transpose", strides=2, groups=2)
    after = assert_computes_the_same(DecomposeConvolutions(), module)
    assert "nn.conv2d_transpose" not in operators(after)


@pytest.mark.parametrize(
    ("shape", "weights", "operator", "attrs"),
    [
        ((2, 4, 9), (6, 2, 3), "conv1d", {"padding": (1, 2), "strides": 2, "groups": 2}),
        ((2, 4, 9), (4, 3, 4), "conv1d_transpose", {"padding": (1, 1), "strides": 2}),
    ],
    ids=["conv1d", "conv1d_transpose"],
)
def test_one_dimensional(shape, weights, operator, attrs) -> None:
    module = _module(shape, _array(*weights), operator, **attrs)
    after = assert_computes_the_same(DecomposeConvolutions(), module)
    assert "nn.conv2d" in operators(after)
    assert f"nn.{operator}" not in operators(after)


def test_one_dimensional_pooling() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 3, 11), "float32")) -> R.Tensor((1, 3, 4), "float32"):
            with R.dataflow():
                a = R.nn.max_pool1d(x, pool_size=[3], strides=[2], padding=[1, 1])
                b = R.nn.avg_pool1d(a, pool_size=[3], strides=[1])
                R.output(b)
            return b

    after = assert_computes_the_same(DecomposeConvolutions(), Module)
    assert [name for name in operators(after) if name != "reshape"] == [
        "nn.max_pool2d",
        "nn.avg_pool2d",
    ]


def test_weights_that_are_inputs_are_left_alone() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(
            x: R.Tensor((1, 4, 3, 3), "float32"), w: R.Tensor((4, 4, 2, 2), "float32")
        ) -> R.Tensor((1, 4, 6, 6), "float32"):
            with R.dataflow():
                y = R.nn.conv2d_transpose(x, w, strides=2)
                R.output(y)
            return y

    assert_left_alone(DecomposeConvolutions(), Module)


def _scatter(data: np.ndarray, kernel: np.ndarray, stride: int, pad: int, extent: int):
    """Transposed convolution of one axis by its definition: each input scatters its kernel."""
    result = np.zeros(extent)
    for i, k in itertools.product(range(len(data)), range(len(kernel))):
        if 0 <= stride * i + k - pad < extent:
            result[stride * i + k - pad] += data[i] * kernel[k]
    return result


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_subpixel_axis_is_the_scattered_kernel(stride: int, kernel: int, pad: int) -> None:
    data, taps = _array(6).astype("float64"), _array(kernel).astype("float64")
    full = stride * 5 + kernel - pad
    for extent in (full, max(full - pad, 1), full + 2):
        axis = subpixel_axis(6, kernel, stride, pad, extent)
        none = subpixel_axis(1, 1, 1, 0, 1)
        weights = subpixel_weights(taps.reshape(1, 1, 1, -1), 1, none, axis)
        assert min(axis.pad_before, axis.pad_after) >= 0
        padded = np.pad(data, (axis.pad_before, axis.pad_after))
        windows = np.lib.stride_tricks.sliding_window_view(padded, axis.window)
        assert len(windows) == axis.positions
        interleaved = (windows @ weights.reshape(stride, axis.window).T).reshape(-1)[:extent]
        np.testing.assert_allclose(
            interleaved, _scatter(data, taps, stride, pad, extent), atol=1e-12
        )
