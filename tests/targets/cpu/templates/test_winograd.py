"""Winograd's convolution against numpy: awkward images, channels and decisions, and accuracy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tvm
from template_checks import fuse, prefetched, run
from test_convolution import reference
from tvm import relax

from tinsmith.targets.algorithms import DirectOnly
from tinsmith.targets.arm.specs import CORTEX_A7, CORTEX_A72
from tinsmith.targets.cpu.operators.algorithms import WINOGRAD_TILES
from tinsmith.targets.cpu.operators.winograd import transform_weights
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.winograd import WinogradTemplate
from tinsmith.targets.schedule import match_template, schedule_function
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.specs import X86_64_V4

TILES = tuple(WINOGRAD_TILES.values())


class Always:
    """A lookup that knows one algorithm for everything."""

    def __init__(self, algorithm):
        self.algorithm = algorithm

    def find(self, workload, spec):
        return self.algorithm


def winograd(tile):
    """The lookup for a tile."""
    return Always(next(name for name, size in WINOGRAD_TILES.items() if size == tile))


def ordinary(inputs, outputs):
    """Weights that no shorter float holds."""
    return np.full((3, 3, inputs, outputs), 0.1, "float32")


def kernel(shapes, weights, padding, spec, algorithms, epilogue=None, **attributes):
    """The fused function of a convolution of `x` and what `epilogue` makes of it."""

    def emit(builder, variables):
        value = relax.op.nn.conv2d(
            variables[0],
            relax.const(weights),
            padding=padding,
            **{
                "data_layout": "NHWC",
                "kernel_layout": "HWIO",
                "out_layout": "NHWC",
                **attributes,
            },
        )
        if epilogue is None:
            return value
        return epilogue(builder, builder.emit(value), variables[1:])

    return fuse(shapes, emit, spec, algorithms)


def full(builder, value, variables):
    """Bias, residual and activation."""
    bias, residual = variables
    value = builder.emit(relax.op.add(value, bias))
    return relax.op.nn.relu(builder.emit(relax.op.add(value, residual)))


def problem(shape, channels, padding, tile, spec):
    """A fused convolution with its whole epilogue, its arguments and the result in float64."""
    inputs, outputs = channels
    random = np.random.default_rng(0)
    data = random.standard_normal((*shape, inputs)).astype("float32")
    weights = random.standard_normal((3, 3, inputs, outputs)).astype("float32")
    bias = random.standard_normal(outputs).astype("float32")
    top, left, bottom, right = padding
    padded = np.pad(data, [(0, 0), (top, bottom), (left, right), (0, 0)])
    expected = reference(padded, weights, 1, 0, 1, 1) + bias
    residual = random.standard_normal(expected.shape).astype("float32")
    shapes = {"x": data.shape, "b": bias.shape, "r": residual.shape}
    function = kernel(shapes, weights, padding, spec, winograd(tile), full)
    arguments = [data, transform_weights(weights, tile, spec.float_lanes), bias, residual]
    return function, arguments, np.maximum(expected + residual, 0)


def deviation(actual, expected):
    """The largest error, as a share of the largest value."""
    return np.abs(actual - expected).max() / (np.abs(expected).max() + 1e-6)


# batch, height, width; input and output channels; padding at the top, left, bottom and right.
SHAPES = [
    ((1, 7, 7), (64, 64), (1, 1, 1, 1)),
    ((2, 13, 15), (17, 65), (1, 1, 1, 1)),
    ((1, 1, 9), (3, 5), (1, 1, 1, 1)),
    ((2, 8, 8), (33, 17), (0, 0, 0, 0)),
    ((1, 6, 9), (4, 100), (0, 2, 1, 0)),
    ((1, 5, 6), (8, 24), (3, 0, 5, 4)),
    ((3, 14, 1), (65, 3), (1, 1, 1, 1)),
]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("shape", "channels", "padding"), SHAPES, ids=str)
def test_matches_numpy(shape, channels, padding, tile, spec, schedule):
    function, arguments, expected = problem(shape, channels, padding, tile, spec)
    actual = run(schedule(WinogradTemplate(), function), spec, arguments)
    assert deviation(actual, expected) < 1e-5


@pytest.mark.parametrize(
    ("tile", "tiles", "rows", "vectors", "chunks"),
    [(4, 1, 1, 1, 1), (2, 5, 3, 2, 2), (4, 12, 5, 3, 1), (4, 64, 9, 2, 8)],
)
def test_every_decision_gives_the_same_result(tile, tiles, rows, vectors, chunks, spec, schedule):
    function, arguments, expected = problem((2, 7, 11), (6, 72), (1, 1, 1, 1), tile, spec)
    decisions = {"tiles": tiles, "rows": rows, "vectors": vectors, "chunks": chunks}
    scheduled = schedule(WinogradTemplate(), function, decisions)
    assert deviation(run(scheduled, spec, arguments), expected) < 1e-5


@pytest.mark.parametrize("tile", TILES)
def test_the_definition_is_a_convolution(tile, spec):
    """What runs if no template takes the kernel: the naive loops."""
    function, arguments, expected = problem((1, 5, 6), (4, 18), (1, 0, 1, 2), tile, spec)
    assert deviation(run(function, spec, arguments), expected) < 1e-5


def test_asks_for_the_weights_of_every_next_position(spec, schedule):
    """All but those of the very first position, and nothing outside."""
    weights = ordinary(3, 4 * spec.float_lanes)
    function = kernel({"x": (1, 4, 8, 3)}, weights, 1, spec, winograd(2))
    decisions = {"tiles": 8, "rows": 4, "vectors": 2, "chunks": 1}
    asked = prefetched(schedule(WinogradTemplate(), function, decisions).body)
    every = set(product(range(4), range(16), range(3), [0]))
    assert asked == every - set(product(range(2), [0], range(3), [0]))


def test_other_epilogues(spec, schedule):
    random = np.random.default_rng(0)
    data = random.standard_normal((1, 10, 10, 8)).astype("float32")
    weights = random.standard_normal((3, 3, 8, 20)).astype("float32")

    def gate(builder, value, variables):
        return relax.op.multiply(value, builder.emit(relax.op.sigmoid(value)))

    function = kernel({"x": data.shape}, weights, 1, spec, winograd(4), gate)
    template, match = match_template(function, spec)
    assert template.name == "winograd"
    scheduled = schedule_function(function, template, match, template.default(match, spec), spec)
    value = reference(data, weights, 1, 1, 1, 1)
    actual = run(scheduled, spec, [data, transform_weights(weights, 4, spec.float_lanes)])
    assert deviation(actual, value / (1 + np.exp(-value))) < 1e-5


@pytest.mark.parametrize(("tile", "bound"), [(2, 4e-6), (4, 1.2e-5)])
def test_accuracy_with_many_channels(tile, bound, spec, schedule):
    """Far within the 1e-3 that a module may be off, with the most channels that are common."""
    random = np.random.default_rng(0)
    data = np.maximum(random.standard_normal((1, 7, 7, 512)), 0).astype("float32")
    weights = (random.standard_normal((3, 3, 512, 64)) / 48).astype("float32")
    function = kernel({"x": data.shape}, weights, 1, spec, winograd(tile))
    scheduled = schedule(WinogradTemplate(), function)
    actual = run(scheduled, spec, [data, transform_weights(weights, tile, spec.float_lanes)])
    assert deviation(actual, reference(data, weights, 1, 1, 1, 1)) < bound


@pytest.mark.parametrize(
    "attributes",
    [{"strides": 2}, {"dilation": 2}, {"groups": 2}, {"data_layout": "NCHW"}],
    ids=str,
)
def test_others_stay_direct(attributes, spec):
    groups = attributes.get("groups", 1)
    shape = (1, 8, 9, 9) if "data_layout" in attributes else (1, 9, 9, 8)
    weights = np.ones((3, 3, 8 // groups, 16), "float32")
    function = kernel({"x": shape}, weights, 1, spec, winograd(4), **attributes)
    assert match_template(function, spec)[0].name == "convolution"


@pytest.mark.parametrize("target", [CORTEX_A72, CORTEX_A7], ids=lambda target: target.name)
def test_compiles_for_arm(target):
    weights = ordinary(12, 20)
    function = kernel({"x": (1, 9, 9, 12)}, weights, 1, target, winograd(4))
    template, match = match_template(function, target)
    assert template.name == "winograd"
    default = template.default(match, target)
    scheduled = schedule_function(function, template, match, default, target)
    machine = tvm.target.Target(target.tvm_target_config())
    code = tvm.compile(scheduled.with_attr("global_symbol", "main"), target=machine)
    assert ".text" in code.mod.inspect_source("asm")


@pytest.mark.parametrize("target", [CORTEX_A72, CORTEX_A7], ids=lambda target: target.name)
def test_the_rule_leaves_arm_direct(target):
    function = kernel({"x": (1, 56, 56, 64)}, ordinary(64, 64), 1, target, None)
    assert match_template(function, target)[0].name == "convolution"


def test_other_kernels_stay_direct(spec):
    function = kernel({"x": (1, 9, 9, 8)}, np.ones((5, 3, 8, 16), "float32"), 1, spec, winograd(4))
    assert WinogradTemplate().match(function, spec) is None
    assert ConvolutionTemplate().match(function, spec) is not None


def test_the_lookup_decides(spec):
    weights = ordinary(64, 64)
    shapes = {"x": (1, 56, 56, 64)}
    by_rule = kernel(shapes, weights, 1, spec, None)
    assert match_template(by_rule, spec)[0].name == "winograd"
    direct = kernel(shapes, weights, 1, spec, DirectOnly())
    assert match_template(direct, spec)[0].name == "convolution"
    chosen = kernel(shapes, weights, 1, spec, winograd(2))
    template, match = match_template(chosen, spec)
    assert (template.name, match.arithmetic) == ("winograd", "float32 F(2x2)")
    # What the lookup does not know goes by the rule.
    unknown = kernel(shapes, weights, 1, spec, Always(None))
    assert match_template(unknown, spec)[1] == match_template(by_rule, spec)[1]


@pytest.mark.parametrize(("size", "channels", "tile"), [(28, 128, 4), (7, 512, 2)])
def test_the_rule_takes_the_tile_that_fits(size, channels, tile):
    """Few pixels: the weights of larger tiles would take longer to read than they save."""
    weights = ordinary(channels, channels)
    function = kernel({"x": (1, size, size, channels)}, weights, 1, X86_64_V4, None)
    match = match_template(function, X86_64_V4)[1]
    assert match.arithmetic == f"float32 F({tile}x{tile})"


@pytest.mark.parametrize("channels", [(8, 64), (64, 8), (64, 64)])
def test_the_rule_leaves_small_work_direct(channels, spec):
    """Few channels, or (the last) fewer pixels than a tile has."""
    size = 3 if channels == (64, 64) else 56
    shapes = {"x": (1, 1, size, channels[0])}
    function = kernel(shapes, ordinary(*channels), 1, spec, None)
    assert match_template(function, spec)[0].name == "convolution"


@pytest.mark.parametrize("tile", TILES)
def test_default_decisions_lie_in_the_registers(tile, spec: TargetSpec):
    for shape, channels in (((1, 56, 56), 64), ((4, 7, 7), 512), ((1, 9, 33), 24)):
        weights = ordinary(channels, channels)
        function = kernel({"x": (*shape, channels)}, weights, 1, spec, winograd(tile))
        match = WinogradTemplate().match(function, spec)
        assert match is not None
        chosen = WinogradTemplate().default(match, spec)
        space = WinogradTemplate().space(match, spec)
        assert all(chosen[name] in values for name, values in space.items())
        assert WinogradTemplate().worth_trying(match, chosen, spec)
        assert not WinogradTemplate().worth_trying(match, {**chosen, "vectors": 32}, spec)
