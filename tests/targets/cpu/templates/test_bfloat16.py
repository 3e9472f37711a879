"""bfloat16 kernels against numpy, over awkward shapes: products in float32, results rounded."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tvm
from numpy.lib.stride_tricks import sliding_window_view
from template_checks import cpu_flags, fuse_module, run
from tvm import relax, tirx

from tinsmith.targets.cpu.arithmetic import arithmetic_named, choose_arithmetic
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.schedule import match_template, schedule_function
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4

BFLOAT16 = ml_dtypes.bfloat16
SPEC = replace(
    X86_64_V4,
    name="x86-64-v4+bf16",
    llvm_attributes=(*X86_64_V4.llvm_attributes, "+avx512bf16"),
    cpu_features=X86_64_V4.cpu_features | {"avx512_bf16"},
    bfloat16=True,
)


@pytest.fixture
def spec():
    missing = SPEC.cpu_features - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return SPEC


def test_only_machines_with_the_instructions_compute_in_bfloat16():
    assert choose_arithmetic("bfloat16", "bfloat16", SPEC).name == "bfloat16"
    assert choose_arithmetic("bfloat16", "bfloat16", X86_64_V4) is None
    assert choose_arithmetic("bfloat16", "bfloat16", X86_64_V3) is None


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16)


def scheduled(shapes, emit, spec, template):
    """The function of that template among those that the expression becomes."""
    functions = fuse_module(shapes, emit, spec, "bfloat16")
    for function in functions:
        found, match = match_template(function, spec)
        if found.name == template:
            return schedule_function(
                function, found, match, found.default(match, spec), spec
            ), match.workload
    raise AssertionError(f"no {template} among {len(functions)} functions")


def agree(actual, expected):
    """Equal up to the order of float32 additions, then one rounding to bfloat16."""
    expected = np.asarray(expected, "float32")
    tolerance = 2e-4 * np.abs(expected).max() + np.abs(expected) * (
        2.0**-8 if actual.dtype == BFLOAT16 else 1e-6
    )
    error = np.abs(actual.astype("float32") - expected)
    assert actual.shape == expected.shape
    assert (error <= tolerance).all(), f"off by {error.max()}"


# batch, height, width, in channels, out channels, kernel, stride, padding, groups
SHAPES = [
    (1, 1, 1, 4, 7, 1, 1, 0, 1),
    (1, 7, 7, 32, 100, 1, 1, 0, 1),
    (2, 6, 5, 12, 112, 1, 2, 0, 1),
    (1, 9, 9, 3, 33, 3, 2, 1, 1),
    (1, 14, 14, 16, 64, 3, 1, 1, 1),
    (2, 9, 11, 21, 30, 5, 1, 2, 1),
    (1, 13, 17, 24, 40, 3, 2, 1, 2),
    (1, 8, 8, 12, 24, 3, 1, 1, 2),
    (1, 7, 7, 512, 16, 3, 1, 1, 1),
]


def convolve(data, weights, stride, padding, groups):
    """The float64 NHWC convolution."""
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    windows = sliding_window_view(
        np.pad(data.astype("float64"), pads), weights.shape[:2], axis=(1, 2)
    )[:, ::stride, ::stride]
    inputs, outputs = weights.shape[2], weights.shape[3] // groups
    return np.concatenate(
        [
            np.einsum(
                "nyxchw,hwco->nyxo",
                windows[:, :, :, g * inputs : (g + 1) * inputs],
                weights[..., g * outputs : (g + 1) * outputs].astype("float64"),
                optimize=True,
            )
            for g in range(groups)
        ],
        axis=-1,
    )


def convolution(weights, stride, padding, groups, result):
    def emit(builder, variables):
        product = relax.op.nn.conv2d(
            variables[0],
            relax.const(weights, "bfloat16"),
            strides=stride,
            padding=padding,
            groups=groups,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_layout="NHWC",
            out_dtype="float32",
        )
        if result == "float32":
            return product
        return relax.op.astype(relax.op.nn.relu(builder.emit(product)), result)

    return emit


@pytest.mark.parametrize("result", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape, result, spec):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = values(batch, height, width, inputs)
    weights = values(kernel, kernel, inputs // groups, outputs, seed=1)
    emit = convolution(weights, stride, padding, groups, result)
    function, workload = scheduled({"x": data.shape}, emit, spec, "convolution")
    assert workload.arithmetic == "bfloat16"
    spare = int(function.params[0].ty.shape[3]) - inputs
    padded = np.pad(data, [(0, 0)] * 3 + [(0, spare)])
    packed = pack_weights(weights, groups, spec.float_lanes, arithmetic_named("bfloat16").depth)
    expected = convolve(data, weights, stride, padding, groups)
    if result == "bfloat16":
        expected = np.maximum(expected, 0)
    agree(run(function, spec, [padded, packed]), expected)


@pytest.mark.parametrize("result", ["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(33, 3, 1), (64, 3, 2), (16, 5, 1)])
def test_depthwise_convolution_sums_in_float32(channels, kernel, stride, result, spec):
    data, weights = values(2, 9, 11, channels), values(kernel, kernel, 1, channels, seed=1)
    emit = convolution(weights, stride, kernel // 2, channels, result)
    function, _ = scheduled({"x": data.shape}, emit, spec, "channelwise")
    expected = convolve(data, weights, stride, kernel // 2, channels)
    if result == "bfloat16":
        expected = np.maximum(expected, 0)
    agree(run(function, spec, [data, weights[:, :, 0].astype("float32")]), expected)


@pytest.mark.parametrize("channels", [3, 16, 100])
@pytest.mark.parametrize("operation", ["max", "avg"])
def test_pooling(operation, channels, spec):
    data = values(1, 9, 9, channels)

    def emit(_, variables):
        pool = getattr(relax.op.nn, f"{operation}_pool2d")
        return pool(variables[0], (3, 3), strides=(2, 2), padding=(1, 1), layout="NHWC")

    function, _ = scheduled({"x": data.shape}, emit, spec, "channelwise")
    outside = -np.inf if operation == "max" else np.nan
    padded = np.pad(
        data.astype("float32"), [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=outside
    )
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    reduce = np.max if operation == "max" else np.nanmean
    actual = run(function, spec, [data])
    assert actual.dtype == BFLOAT16
    agree(actual, reduce(windows, axis=(-1, -2)))


@pytest.mark.parametrize(("rows", "k", "columns"), [(1, 64, 100), (37, 30, 17), (5, 3, 1000)])
def test_matrix_product(rows, k, columns, spec):
    left, right = values(rows, k), values(k, columns, seed=1)

    def emit(_, variables):
        return relax.op.matmul(variables[0], relax.const(right, "bfloat16"), out_dtype="float32")

    function, workload = scheduled({"x": left.shape}, emit, spec, "matmul")
    assert workload.arithmetic == "bfloat16"
    padded = np.pad(left, [(0, 0), (0, int(function.params[0].ty.shape[1]) - k)])
    packed = pack_columns(right, spec.float_lanes, 2)
    agree(run(function, spec, [padded, packed]), left.astype("float64") @ right.astype("float64"))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((1, 3, 5, 16), 4), ((2, 3, 7, 37), 4), ((1, 1, 3, 20), 2), ((1, 4, 6, 19), 4)],
)
def test_an_image_is_made_channels_last_in_words(shape, channels, spec):
    data = np.random.default_rng(0).standard_normal(shape).astype("float32")
    missing = channels - shape[1]

    def emit(builder, variables):
        short = builder.emit(relax.op.astype(variables[0], "bfloat16"))
        if missing:
            short = builder.emit(relax.op.nn.pad(short, [0, 0, 0, missing, 0, 0, 0, 0]))
        return relax.op.permute_dims(short, [0, 2, 3, 1])

    (function,) = fuse_module({"x": shape}, emit, spec)
    template, match = match_template(function, spec)
    scheduled_function = schedule_function(function, template, match, {}, spec)
    assert "words" in scheduled_function.script()
    expected = np.pad(data, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 3, 1)
    actual = run(scheduled_function, spec, [data])
    np.testing.assert_array_equal(actual.view("uint16"), expected.astype(BFLOAT16).view("uint16"))


@pytest.mark.parametrize("count", [1, 3, 16, 37, 1000])
def test_rounding_is_to_nearest_ties_to_even(count, spec):
    random = np.random.default_rng(0)
    data = random.standard_normal(count).astype("float32")
    bits = data.view("uint32")
    bits[::3] = (bits[::3] & 0xFFFF0000) | 0x8000  # halfway between two bfloat16
    data[-1] = np.inf

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((count,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(relax.op.astype(x, "bfloat16"))
        builder.emit_func_output(output)
    lowered = relax.transform.LegalizeOps()(builder.get())
    (function,) = (f for f in lowered.functions.values() if isinstance(f, tirx.PrimFunc))
    template, match = match_template(function, spec)
    rounded = schedule_function(function, template, match, template.default(match, spec), spec)
    actual = run(rounded, spec, [data])
    np.testing.assert_array_equal(actual.view("uint16"), data.astype(BFLOAT16).view("uint16"))
    target = tvm.target.Target(spec.tvm_target_config())
    assembly = tvm.compile(rounded.with_attr("global_symbol", "main"), target=target)
    assert "vcvtneps2bf16" in assembly.mod.inspect_source("asm")
