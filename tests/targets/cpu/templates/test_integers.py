"""Integer kernels against exact numpy integers, on every instruction set that this CPU has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from template_checks import cpu_flags, fuse_module, run
from tvm import relax

from tinsmith.targets.cpu.arithmetic import arithmetic_named, choose_arithmetic
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.injective import Injective
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4


def extended(level, llvm, linux):
    return replace(
        level,
        name=f"{level.name}+{llvm}",
        llvm_attributes=(*level.llvm_attributes, f"+{llvm}"),
        cpu_features=level.cpu_features | {linux},
    )


SPECS = [
    X86_64_V3,
    extended(X86_64_V3, "avxvnni", "avx_vnni"),
    X86_64_V4,
    extended(X86_64_V4, "avx512vnni", "avx512_vnni"),
]
EXPECTED = ["avx2-int8", "vnni", "avx2-int8", "vnni"]


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def spec(request):
    missing = request.param.cpu_features - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return request.param


@pytest.mark.parametrize(
    ("level", "name"),
    list(zip(SPECS, EXPECTED, strict=True)),
    ids=lambda value: getattr(value, "name", value),
)
def test_the_best_instructions_are_chosen(level, name):
    chosen = choose_arithmetic("uint8", "int8", level)
    assert chosen is not None
    assert chosen.name == name


# batch, height, width, in channels, out channels, kernel, stride, padding, groups
SHAPES = [
    (1, 1, 1, 4, 7, 1, 1, 0, 1),
    (1, 7, 7, 32, 100, 1, 1, 0, 1),
    (2, 6, 5, 12, 112, 1, 2, 0, 1),
    (1, 9, 9, 3, 33, 3, 2, 1, 1),
    (1, 14, 14, 16, 64, 3, 1, 1, 1),
    (2, 9, 11, 20, 30, 5, 1, 2, 1),
    (1, 13, 17, 24, 40, 3, 2, 1, 2),
    (1, 8, 8, 12, 24, 3, 1, 1, 2),
    (1, 7, 7, 512, 16, 3, 1, 1, 1),
]


def sums(data, weights, stride, padding, groups, border=0):
    """The exact int64 NHWC convolution; `border` is what the image is padded with."""
    kernel = weights.shape[:2]
    top, left, bottom, right = np.broadcast_to(padding, 4)
    pads = [(0, 0), (top, bottom), (left, right), (0, 0)]
    padded = np.pad(data.astype("int64"), pads, constant_values=border)
    windows = sliding_window_view(padded, kernel, axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    inputs, outputs = weights.shape[2], weights.shape[3] // groups
    return np.concatenate(
        [
            np.einsum(
                "nyxchw,hwco->nyxo",
                windows[:, :, :, g * inputs : (g + 1) * inputs],
                weights[..., g * outputs : (g + 1) * outputs].astype("int64"),
                optimize=True,
            )
            for g in range(groups)
        ],
        axis=-1,
    )


def extremes(shape, dtype):
    """Random integers of the whole range, with many at its ends, where saturation would show."""
    random = np.random.default_rng(0)
    info = np.iinfo(dtype)
    values = random.integers(info.min, info.max + 1, shape)
    ends = random.choice([info.min, info.max], shape)
    return np.where(random.random(shape) < 0.5, values, ends).astype(dtype)


def convolution(data, weights, stride, padding, groups, border=0, out="int32"):
    def emit(builder, variables):
        image, around = variables[0], padding
        if border:
            top, left, bottom, right = (int(extent) for extent in np.broadcast_to(padding, 4))
            widths = [0, 0, top, bottom, left, right, 0, 0]
            image = builder.emit(relax.op.nn.pad(image, widths, "constant", border))
            around = 0
        return relax.op.nn.conv2d(
            image,
            relax.const(weights),
            strides=stride,
            padding=around,
            groups=groups,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_layout="NHWC",
            out_dtype=out,
        )

    return emit


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_is_exact(shape, spec, schedule):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = extremes((batch, height, width, inputs), "uint8")
    weights = extremes((kernel, kernel, inputs // groups, outputs), "int8")
    emit = convolution(data, weights, stride, padding, groups)
    functions = fuse_module({"x": data.shape}, emit, spec, "uint8")
    template = ConvolutionTemplate()
    function = next(f for f in functions if template.match(f, spec))
    depth = arithmetic_named(template.match(function, spec).workload.arithmetic).depth
    spare = int(function.params[0].ty.shape[3]) - inputs
    padded = np.pad(data, [(0, 0)] * 3 + [(0, spare)])
    packed = pack_weights(weights, groups, spec.float_lanes, depth)
    actual = run(schedule(template, function), spec, [padded, packed])
    np.testing.assert_array_equal(actual, sums(data, weights, stride, padding, groups))


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(33, 3, 1), (64, 3, 2), (16, 5, 1)])
def test_depthwise_convolution_is_exact(channels, kernel, stride, spec, schedule):
    data = extremes((2, 9, 11, channels), "uint8")
    weights = extremes((kernel, kernel, 1, channels), "int8")
    emit = convolution(data, weights, stride, kernel // 2, channels)
    (function,) = fuse_module({"x": data.shape}, emit, spec, "uint8")
    actual = run(schedule(ChannelwiseTemplate(), function), spec, [data, weights[:, :, 0]])
    expected = sums(data, weights, stride, kernel // 2, channels)
    np.testing.assert_array_equal(actual, expected)


# batch, height, width, in channels, out channels, kernel, stride, padding, groups
PADDED = [
    (1, 3, 3, 4, 17, 3, 1, 1, 1),
    (1, 1, 2, 8, 5, 3, 1, 1, 1),
    (2, 9, 11, 3, 20, 5, 2, (1, 2, 3, 0), 1),
    (1, 14, 14, 16, 64, 3, 1, 1, 1),
    (1, 13, 17, 24, 40, 3, 2, 1, 2),
    (1, 12, 1, 8, 24, 3, 1, (1, 1, 1, 1), 1),
    (1, 9, 9, 33, 33, 3, 1, 1, 33),
    (2, 9, 14, 64, 64, 3, 2, (0, 1, 1, 1), 64),
    (1, 4, 4, 16, 16, 7, 1, 3, 16),
]


@pytest.mark.parametrize("shape", PADDED, ids=str)
def test_a_border_of_the_zero_point_takes_no_kernel(shape, spec, schedule):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = extremes((batch, height, width, inputs), "uint8")
    weights = extremes((kernel, kernel, inputs // groups, outputs), "int8")
    emit = convolution(data, weights, stride, padding, groups, border=113)
    functions = fuse_module({"x": data.shape}, emit, spec, "uint8")
    template = ChannelwiseTemplate() if groups == inputs else ConvolutionTemplate()
    (function,) = [f for f in functions if template.match(f, spec)]
    # Only channels that do not fill a step of the arithmetic are copied before.
    spare = int(function.params[0].ty.shape[3]) - inputs
    assert len(functions) == (2 if spare else 1)
    padded = np.pad(data, [(0, 0)] * 3 + [(0, spare)])
    if groups == inputs:
        packed = weights[:, :, 0]
    else:
        depth = arithmetic_named(template.match(function, spec).workload.arithmetic).depth
        packed = pack_weights(weights, groups, spec.float_lanes, depth)
    expected = sums(data, weights, stride, padding, groups, border=113)
    actual = run(schedule(template, function), spec, [padded, packed])
    np.testing.assert_array_equal(actual, expected)


def test_wide_depthwise_windows_are_exact(spec, schedule):
    data = extremes((1, 24, 23, 8), "uint8") | 0x80
    weights = extremes((23, 23, 1, 8), "int8")
    functions = fuse_module({"x": data.shape}, convolution(data, weights, 1, 0, 8), spec, "uint8")
    template = ConvolutionTemplate()
    (function,) = [f for f in functions if template.match(f, spec)]
    packed = pack_weights(weights, 8, spec.float_lanes, 1)
    actual = run(schedule(template, function), spec, [data, packed])
    np.testing.assert_array_equal(actual, sums(data, weights, 1, 0, 8))


def test_maximum_pooling_of_bytes(spec, schedule):
    data = extremes((1, 9, 9, 100), "uint8")

    def emit(_, variables):
        return relax.op.nn.max_pool2d(
            variables[0], (3, 3), strides=(2, 2), padding=(1, 1), layout="NHWC"
        )

    (function,) = fuse_module({"x": data.shape}, emit, spec, "uint8")
    actual = run(schedule(ChannelwiseTemplate(), function), spec, [data])
    padded = np.pad(data, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(actual, windows.max(axis=(-1, -2)))


@pytest.mark.parametrize(("rows", "k", "columns"), [(1, 64, 100), (37, 30, 17), (5, 4, 1000)])
def test_matrix_product_is_exact(rows, k, columns, spec, schedule):
    left, right = extremes((rows, k), "uint8"), extremes((k, columns), "int8")

    def emit(_, variables):
        return relax.op.matmul(variables[0], relax.const(right), out_dtype="int32")

    template = MatmulTemplate()
    functions = fuse_module({"x": left.shape}, emit, spec, "uint8")
    function = next(f for f in functions if template.match(f, spec))
    depth = arithmetic_named(template.match(function, spec).workload.arithmetic).depth
    padded = np.pad(left, [(0, 0), (0, int(function.params[0].ty.shape[1]) - k)])
    packed = pack_columns(right, spec.float_lanes, depth)
    actual = run(schedule(template, function), spec, [padded, packed])
    np.testing.assert_array_equal(actual, left.astype("int64") @ right.astype("int64"))


# left, right, zero point of the left operand, whether the right operand comes transposed
COMPUTED = [
    ((1, 4), (4, 1), 0, False),
    ((5, 8), (8, 17), 131, False),
    ((2, 3, 5, 12), (2, 3, 12, 9), 0, True),
    ((2, 3, 7, 16), (2, 3, 16, 40), 255, True),
    ((4, 1, 5, 8), (1, 3, 8, 20), 3, False),
    ((2, 3, 20, 32), (32, 50), 128, True),
    ((3, 33, 32), (3, 32, 33), 77, True),
    ((2, 6, 30), (2, 30, 18), 99, False),
    ((1, 7), (7, 21), 0, True),
]


@pytest.mark.parametrize("problem", COMPUTED, ids=str)
def test_product_of_two_computed_operands_is_exact(problem, spec, schedule):
    left_shape, right_shape, zero_point, transposed = problem
    left, right = extremes(left_shape, "uint8"), extremes(right_shape, "int8")
    axes = [*range(len(right_shape) - 2), len(right_shape) - 1, len(right_shape) - 2]
    given = np.ascontiguousarray(right.transpose(axes)) if transposed else right

    def emit(builder, variables):
        x, y = variables
        if zero_point:
            wide = builder.emit(relax.op.astype(x, "int16"))
            x = builder.emit(relax.op.subtract(wide, relax.const(np.int16(zero_point))))
        if transposed:
            y = builder.emit(relax.op.permute_dims(y, axes))
        return relax.op.matmul(x, y, out_dtype="int32")

    types = {"x": (left_shape, "uint8"), "y": (given.shape, "int8")}
    functions = fuse_module(types, emit, spec)
    template = MatmulTemplate()
    (function,) = [f for f in functions if template.match(f, spec)]
    depth = arithmetic_named(template.match(function, spec).workload.arithmetic).depth
    # One kernel packs the right operand and transposes it, one pads a left one if need be.
    assert len(functions) == 2 + bool(left_shape[-1] % depth)
    packed = np.stack(
        [pack_columns(m, spec.float_lanes, depth) for m in right.reshape(-1, *right_shape[-2:])]
    )
    packed = packed.reshape(*right_shape[:-2], *packed.shape[1:])
    if len(functions) == 2:
        (packs,) = [f for f in functions if f is not function]
        found = run(schedule(Injective(), packs), spec, [given])
        np.testing.assert_array_equal(found, packed)
    widths = [(0, 0)] * (left.ndim - 1) + [(0, -left_shape[-1] % depth)]
    actual = run(schedule(template, function), spec, [np.pad(left, widths), packed])
    expected = np.matmul(left.astype("int64") - zero_point, right.astype("int64"))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("outer", [0, 1])
def test_a_zero_point_is_right_for_every_decision(rows, vectors, outer, spec, schedule):
    left, right = extremes((2, 11, 8), "uint8"), extremes((2, 8, 70), "int8")

    def emit(builder, variables):
        wide = builder.emit(relax.op.astype(variables[0], "int16"))
        shifted = builder.emit(relax.op.subtract(wide, relax.const(np.int16(200))))
        return relax.op.matmul(shifted, variables[1], out_dtype="int32")

    types = {"x": (left.shape, "uint8"), "y": (right.shape, "int8")}
    template = MatmulTemplate()
    (function,) = [f for f in fuse_module(types, emit, spec) if template.match(f, spec)]
    depth = arithmetic_named(template.match(function, spec).workload.arithmetic).depth
    packed = np.stack([pack_columns(matrix, spec.float_lanes, depth) for matrix in right])
    decisions = {"rows": rows, "vectors": vectors, "columns_outer": outer, "prefetch": outer}
    actual = run(schedule(template, function, decisions), spec, [left, packed])
    expected = np.matmul(left.astype("int64") - 200, right.astype("int64"))
    np.testing.assert_array_equal(actual, expected)
