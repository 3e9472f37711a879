"""The convolution template against numpy, over the shapes that break tilings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from template_checks import fuse, prefetched, run
from tvm import relax

from tinsmith.targets.algorithms import DirectOnly
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.register_tile import choose_tile
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4


def pair(value):
    """A height and a width."""
    return value if isinstance(value, tuple) else (value, value)


def reference(data, weights, stride, padding, dilation, groups):
    """NHWC convolution with HWIO weights in float64."""
    kernel_height, kernel_width, per_group, out_channels = weights.shape
    padded = np.pad(data, [(0, 0), *((p, p) for p in pair(padding)), (0, 0)])
    reach = [(k - 1) * dilation + 1 for k in (kernel_height, kernel_width)]
    windows = sliding_window_view(padded.astype("float64"), reach, axis=(1, 2))
    windows = windows[:, ::stride, ::stride, :, ::dilation, ::dilation]
    out_per_group = out_channels // groups
    return np.concatenate(
        [
            np.einsum(
                "nyxchw,hwco->nyxo",
                windows[:, :, :, g * per_group : (g + 1) * per_group],
                weights[..., g * out_per_group : (g + 1) * out_per_group],
            )
            for g in range(groups)
        ],
        axis=-1,
    )


# batch, height, width, in channels, out channels, kernel, stride, padding, dilation, groups
SHAPES = [
    (1, 1, 1, 5, 7, 1, 1, 0, 1, 1),
    (1, 7, 7, 24, 100, 1, 1, 0, 1, 1),
    (2, 6, 5, 12, 112, 1, 1, 0, 1, 1),
    (1, 6, 6, 12, 33, 1, 2, 0, 1, 1),
    (2, 5, 5, 3, 17, 3, 1, 1, 1, 1),
    (3, 8, 6, 40, 80, 3, 2, 1, 1, 1),
    (1, 13, 17, 24, 40, 3, 2, 1, 1, 2),
    (1, 14, 14, 16, 64, 3, 1, 1, 1, 1),
    (1, 15, 15, 4, 33, 5, 3, 2, 1, 1),
    (1, 9, 9, 8, 8, 3, 1, 4, 1, 1),
    (1, 12, 12, 12, 24, 3, 1, 3, 3, 1),
    (1, 30, 30, 6, 1, 3, 1, 1, 1, 1),
    (1, 20, 20, 3, 24, 7, 2, 3, 1, 1),
    (1, 12, 12, 12, 24, 3, 1, 1, 1, 4),
    (2, 9, 11, 20, 30, 5, 1, 2, 2, 1),
    (1, 5, 64, 8, 16, 5, 1, 0, 1, 1),
    (2, 40, 1, 8, 16, (3, 1), 2, (1, 0), 1, 1),
    (1, 300, 1, 5, 20, (5, 1), 1, (0, 0), 2, 1),
]


def problem(shape, layout, spec):
    batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups = shape
    random = np.random.default_rng(0)
    data = random.standard_normal((batch, height, width, inputs)).astype("float32")
    weights = random.standard_normal((*pair(kernel), inputs // groups, outputs)).astype("float32")
    bias = random.standard_normal(outputs).astype("float32")
    expected = reference(data, weights, stride, padding, dilation, groups) + bias
    residual = random.standard_normal(expected.shape).astype("float32")
    expected = np.maximum(expected + residual, 0)
    if layout == "NCHW":
        data = np.ascontiguousarray(data.transpose(0, 3, 1, 2))

    def emit(builder, variables):
        x, b, r = variables
        value = relax.op.nn.conv2d(
            x,
            relax.const(weights),
            strides=stride,
            padding=pair(padding),
            dilation=dilation,
            groups=groups,
            data_layout=layout,
            kernel_layout="HWIO",
            out_layout="NHWC",
        )
        value = builder.emit(relax.op.add(builder.emit(value), b))
        return relax.op.nn.relu(builder.emit(relax.op.add(value, r)))

    shapes = {"x": data.shape, "b": bias.shape, "r": residual.shape}
    packed = pack_weights(weights, groups, spec.float_lanes)
    return fuse(shapes, emit, spec, DirectOnly()), [data, packed, bias, residual], expected


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(shape, layout, spec, schedule):
    if layout == "NCHW" and shape[-1] > 1:
        pytest.skip("only ungrouped convolutions read NCHW")
    function, arguments, expected = problem(shape, layout, spec)
    scheduled = schedule(ConvolutionTemplate(), function)
    actual = run(scheduled, spec, arguments)
    scale = np.abs(expected).max() + 1e-6
    assert np.abs(actual - expected).max() / scale < 1e-5


@pytest.mark.parametrize(
    ("rows", "vectors", "outer", "prefetch"),
    [
        (*tile, *order)
        for tile in itertools.product((1, 4, 6), (1, 2, 3))
        for order in ((0, 0), (1, 0), (1, 1))
    ],
)
def test_every_decision_gives_the_same_result(rows, vectors, outer, prefetch, spec, schedule):
    function, arguments, expected = problem((1, 7, 11, 6, 72, 3, 1, 1, 1, 1), "NHWC", spec)
    decisions = {"rows": rows, "vectors": vectors, "channels_outer": outer, "prefetch": prefetch}
    scheduled = schedule(ConvolutionTemplate(), function, decisions)
    actual = run(scheduled, spec, arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_the_same_with_weights_asked_for_ahead(shape, spec, schedule):
    function, arguments, expected = problem(shape, "NHWC", spec)
    decisions = {"channels_outer": 1, "prefetch": 1}
    results = [
        run(schedule(ConvolutionTemplate(), function, chosen), spec, arguments)
        for chosen in (decisions, {"channels_outer": 1, "prefetch": 0})
    ]
    np.testing.assert_array_equal(*results)
    assert np.abs(results[0] - expected).max() / (np.abs(expected).max() + 1e-6) < 1e-5


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 3, 4, 29, 100, 1, 1, 0, 1, 1), 4),
        ((1, 3, 5, 29, 100, 1, 1, 0, 1, 1), 4),
        ((1, 7, 11, 9, 70, 3, 2, 0, 1, 1), 2),
        ((2, 4, 7, 6, 70, 3, 1, 0, 1, 1), 2),
        ((1, 9, 1, 11, 70, (3, 1), 2, (0, 0), 1, 1), 2),
    ],
    ids=str,
)
def test_asks_for_the_weights_of_every_next_channel_tile(shape, rows, spec, schedule):
    """All but those of the very first tile, and nothing outside."""
    function, arguments, _ = problem(shape, "NHWC", spec)
    decisions = {"rows": rows, "vectors": 2, "channels_outer": 1, "prefetch": 1}
    places = prefetched(schedule(ConvolutionTemplate(), function, decisions).body)
    extents = arguments[1].shape[:-1]
    every = set(itertools.product(*map(range, extents), [0]))
    assert places == {place for place in every if place[1] >= 2}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 7, 7, 512, 2048, 1, 1, 0, 1, 1), 1),
        ((1, 9, 9, 256, 256, 3, 2, 1, 1, 1), 1),
        ((1, 56, 56, 64, 64, 1, 1, 0, 1, 1), None),
        ((1, 9, 9, 1024, 1024, 3, 1, 1, 1, 4), None),
    ],
    ids=["flat", "window", "few weights", "groups"],
)
def test_weights_that_do_not_stay_in_the_cache_are_asked_for(shape, expected):
    template = ConvolutionTemplate()
    function, _, _ = problem(shape, "NHWC", X86_64_V4)
    match = template.match(function, X86_64_V4)
    chosen = template.default(match, X86_64_V4)
    assert chosen.get("prefetch") == expected
    assert ("prefetch" in template.space(match, X86_64_V4)) == (expected is not None)
    assert template.worth_trying(match, chosen, X86_64_V4)
    apart = {**chosen, "channels_outer": 0}
    assert template.worth_trying(match, apart, X86_64_V4) == (expected is None)


def test_other_kernels_are_left_alone(spec):
    function = fuse({"x": (4, 4)}, lambda _, v: relax.op.nn.relu(v[0]), spec)
    assert ConvolutionTemplate().match(function, spec) is None


def test_counts_operations(spec):
    function, _, _ = problem((1, 14, 14, 16, 64, 3, 1, 1, 1, 1), "NHWC", spec)
    match = ConvolutionTemplate().match(function, spec)
    assert match is not None
    assert match.flops == 2 * 14 * 14 * 64 * 16 * 9


def test_default_decisions_lie_in_the_registers():
    for spec in (X86_64_V3, X86_64_V4):
        for rows, vectors in itertools.product((1, 5, 7, 49, 112), (1, 2, 3, 5, 63)):
            tile_rows, tile_vectors = choose_tile(rows, vectors, spec)
            assert tile_rows * tile_vectors + tile_vectors < spec.vector_registers


def test_packing_pads_the_last_block_with_zeros():
    weights = np.arange(2 * 3 * 10, dtype="float32").reshape(1, 2, 3, 10)
    packed = pack_weights(weights, groups=2, lanes=4)
    assert packed.shape == (2, 2, 1, 2, 3, 4)
    np.testing.assert_array_equal(packed[1, 1, 0, :, :, 0], weights[0, :, :, 9])
    assert not packed[:, 1, ..., 1:].any()
