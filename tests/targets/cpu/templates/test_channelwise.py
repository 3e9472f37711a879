"""Depthwise convolution and pooling against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from template_checks import fuse, run
from tvm import relax

from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate

# batch, height, width, channels, kernel, stride, padding, dilation
SHAPES = [
    (1, 14, 14, 32, 3, 1, 1, 1),
    (1, 13, 9, 33, 3, 2, 1, 1),
    (2, 5, 5, 50, 5, 2, 2, 1),
    (1, 9, 9, 7, 3, 1, 2, 2),
    (1, 7, 7, 96, 3, 1, 1, 1),
    (1, 6, 31, 16, 2, 2, 0, 1),
    (3, 4, 4, 20, 4, 4, 0, 1),
    (1, 3, 40, 144, 3, 1, 1, 1),
]


def windows(data, kernel, stride, padding, dilation, fill):
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(data.astype("float64"), pads, constant_values=fill)
    reach = (kernel - 1) * dilation + 1
    found = sliding_window_view(padded, (reach, reach), axis=(1, 2))
    return found[:, ::stride, ::stride, :, ::dilation, ::dilation]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pixels", [None, 1, 4])
def test_depthwise_matches_numpy(shape, pixels, spec, schedule):
    batch, height, width, channels, kernel, stride, padding, dilation = shape
    random = np.random.default_rng(0)
    data = random.standard_normal((batch, height, width, channels)).astype("float32")
    weights = random.standard_normal((kernel, kernel, 1, channels)).astype("float32")
    bias = random.standard_normal(channels).astype("float32")

    def emit(builder, variables):
        value = relax.op.nn.conv2d(
            variables[0],
            relax.const(weights),
            strides=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_layout="NHWC",
        )
        value = builder.emit(relax.op.add(builder.emit(value), variables[1]))
        return relax.op.clip(value, 0, 6)

    function = fuse({"x": data.shape, "b": bias.shape}, emit, spec)
    decisions = {} if pixels is None else {"pixels": pixels, "vectors": 2, "chunks": 2}
    scheduled = schedule(ChannelwiseTemplate(), function, decisions)
    actual = run(scheduled, spec, [data, weights[:, :, 0], bias])
    found = windows(data, kernel, stride, padding, dilation, 0.0)
    expected = np.clip(np.einsum("nyxchw,hwc->nyxc", found, weights[:, :, 0]) + bias, 0, 6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[6] < s[4]], ids=str)
@pytest.mark.parametrize("operation", ["maximum", "average", "average with padding"])
def test_pooling_matches_numpy(shape, operation, spec, schedule):
    batch, height, width, channels, kernel, stride, padding, dilation = shape
    random = np.random.default_rng(0)
    data = random.standard_normal((batch, height, width, channels)).astype("float32")

    def emit(builder, variables):
        pool = relax.op.nn.max_pool2d if operation == "maximum" else relax.op.nn.avg_pool2d
        return pool(
            variables[0],
            (kernel, kernel),
            strides=(stride, stride),
            padding=(padding, padding),
            dilation=(dilation, dilation),
            count_include_pad=operation == "average with padding",
            layout="NHWC",
        )

    function = fuse({"x": data.shape}, emit, spec)
    actual = run(schedule(ChannelwiseTemplate(), function), spec, [data])
    if operation == "maximum":
        expected = windows(data, kernel, stride, padding, dilation, -np.inf).max(axis=(-1, -2))
    else:
        total = windows(data, kernel, stride, padding, dilation, 0.0).sum(axis=(-1, -2))
        ones = np.ones_like(data)
        fill = 1.0 if operation == "average with padding" else 0.0
        expected = total / windows(ones, kernel, stride, padding, dilation, fill).sum((-1, -2))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_other_kernels_are_left_alone(spec):
    function = fuse({"x": (4, 4)}, lambda _, v: relax.op.nn.relu(v[0]), spec)
    assert ChannelwiseTemplate().match(function, spec) is None
