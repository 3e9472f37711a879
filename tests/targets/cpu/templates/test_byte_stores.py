"""Requantised results are packed into whole registers of bytes: the same numbers come out."""

from __future__ import annotations

import numpy as np
import pytest
from template_checks import cpu_flags, fuse_module, run
from test_integers import convolution, extended, extremes, sums
from tvm import relax

from tinsmith.passes.quantize import numbers
from tinsmith.passes.quantize.operators import Parameters, quantize_call
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.x86.schedules.depthwise_dots import DepthwiseDots
from tinsmith.targets.x86.specs import X86_64_V4

VNNI = extended(X86_64_V4, "avx512vnni", "avx512_vnni")
DOTS = extended(VNNI, "avx512vbmi", "avx512vbmi")


@pytest.fixture
def spec():
    missing = DOTS.cpu_features - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return DOTS


def requantised(products, channels, dtype, zero_point, bounded=False):
    """An emitter of a requantised `products`, the factors and offsets, and a numpy version.

    All factors are powers of two and all offsets halves, so that no float is rounded and many
    results are ties; some factors take the results far beyond 32 bits.
    """
    random = np.random.default_rng(1)
    exponents = random.choice([-12.0, -10.0, -8.0, -1.0, 40.0], channels)
    factors = (np.exp2(exponents) * random.choice([1, -1], channels)).astype("float32")
    offsets = (random.integers(-200, 200, channels) / 2).astype("float32")
    bound = random.integers(-3, 300, channels).astype("float32")

    def emit(builder, variables):
        value = relax.op.astype(builder.emit(products(builder, variables)), "float32")
        value = relax.op.multiply(builder.emit(value), variables[1])
        value = builder.emit(relax.op.add(builder.emit(value), variables[2]))
        if bounded:
            value = builder.emit(relax.op.nn.relu(value))
            value = builder.emit(relax.op.minimum(value, variables[3]))
        return quantize_call(value, Parameters(1.0, zero_point, dtype))

    def expected(exact):
        value = exact.astype("float32") * factors + offsets
        if bounded:
            value = np.minimum(np.maximum(value, 0), bound)
        info = np.iinfo(dtype)
        codes = numbers.IntegerRange(info.min, info.max, dtype)
        return numbers.quantize(value, np.float32(1), zero_point, codes)

    return emit, [factors, offsets, *([bound] if bounded else [])], expected


def inputs_of(data, parameters):
    kinds = {f"p{i}": (p.shape, "float32") for i, p in enumerate(parameters)}
    return {"x": (data.shape, "uint8"), **kinds}


@pytest.mark.parametrize(
    ("channels", "rows", "vectors", "dtype", "zero_point", "bounded"),
    [
        (16, 5, 1, "uint8", 0, True),
        (32, 4, 2, "uint8", 131, False),
        (24, 3, 2, "int8", 0, False),
        (40, 6, 3, "int8", -7, True),
        (96, 4, 6, "uint8", 0, False),
        (100, 2, 7, "uint8", 131, True),
        (112, 4, 3, "int8", 5, True),
    ],
)
def test_convolutions_pack(channels, rows, vectors, dtype, zero_point, bounded, spec, schedule):
    data = extremes((1, 5, 7, 4), "uint8")
    weights = extremes((1, 1, 4, channels), "int8")
    emit, parameters, expected = requantised(
        convolution(data, weights, 1, 0, 1), channels, dtype, zero_point, bounded
    )
    (function,) = fuse_module(inputs_of(data, parameters), emit, spec)
    decisions = {"rows": rows, "vectors": vectors}
    scheduled = schedule(ConvolutionTemplate(), function, decisions)
    assert "llvm.x86.avx512.packssdw.512" in scheduled.script()
    packed = pack_weights(weights, 1, spec.float_lanes, 4)
    actual = run(scheduled, spec, [data, packed, *parameters])
    np.testing.assert_array_equal(actual, expected(sums(data, weights, 1, 0, 1)))


# batch, height, width, channels, kernel, stride, padding, dilation
DEPTHWISE = [
    (1, 9, 11, 64, 3, 1, 1, 1),
    (2, 9, 14, 48, 3, 2, 1, 1),
    (1, 6, 31, 16, 2, 2, 0, 1),
    (1, 12, 13, 32, 5, 1, 2, 1),
    (1, 14, 14, 32, 7, 2, 3, 1),
    (1, 4, 4, 16, 3, 1, 4, 1),
    (1, 9, 9, 32, 3, 1, 2, 2),
    (1, 1, 1, 80, 3, 1, 1, 1),
]


def depthwise(data, weights, stride, padding, dilation):
    channels = data.shape[-1]

    def emit(_, variables):
        return relax.op.nn.conv2d(
            variables[0],
            relax.const(weights),
            strides=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            data_layout="NHWC",
            kernel_layout="HWIO",
            out_layout="NHWC",
            out_dtype="int32",
        )

    return emit


def spread(weights, dilation):
    """The kernel with the gaps of its dilation written out as zeros."""
    kernel = weights.shape[0]
    reach = (kernel - 1) * dilation + 1
    wide = np.zeros((reach, reach, *weights.shape[2:]), weights.dtype)
    wide[::dilation, ::dilation] = weights
    return wide


@pytest.mark.parametrize("shape", DEPTHWISE, ids=str)
@pytest.mark.parametrize("decisions", [{}, {"pixels": 3, "vectors": 3, "chunks": 2}], ids=str)
def test_depthwise_convolutions_by_dot_products(shape, decisions, schedule, spec):
    batch, height, width, channels, kernel, stride, padding, dilation = shape
    data = extremes((batch, height, width, channels), "uint8")
    weights = extremes((kernel, kernel, 1, channels), "int8")
    emit, parameters, expected = requantised(
        depthwise(data, weights, stride, padding, dilation), channels, "uint8", 0, True
    )
    (function,) = fuse_module(inputs_of(data, parameters), emit, spec)
    scheduled = schedule(DepthwiseDots(), function, decisions)
    assert "vpdpbusd" in scheduled.script()
    actual = run(scheduled, spec, [data, weights[:, :, 0], *parameters])
    exact = sums(data, spread(weights, dilation), stride, padding, channels)
    np.testing.assert_array_equal(actual, expected(exact))


def test_dot_products_are_a_decision(schedule, spec):
    data = extremes((1, 9, 11, 64), "uint8")
    weights = extremes((3, 3, 1, 64), "int8")
    emit = depthwise(data, weights, 1, 1, 1)
    (function,) = fuse_module({"x": (data.shape, "uint8")}, emit, spec)
    template = DepthwiseDots()
    match = template.match(function, spec)
    assert match is not None
    assert template.space(match, spec)["dots"] == (0, 1)
    exact = sums(data, weights, 1, 1, 64)
    for dots in (0, 1):
        scheduled = schedule(template, function, {"dots": dots})
        actual = run(scheduled, spec, [data, weights[:, :, 0]])
        np.testing.assert_array_equal(actual, exact)


@pytest.mark.parametrize("change", ["channels", "sign", "border", "machine"])
def test_other_depthwise_convolutions_have_no_dot_products(change):
    channels = 40 if change == "channels" else 64
    dtype = "int8" if change == "sign" else "uint8"
    data = extremes((1, 9, 11, channels), dtype)
    weights = extremes((3, 3, 1, channels), "int8")
    border = 113 if change == "border" else 0
    emit = convolution(data, weights, 1, 1, channels, border=border)
    spec = VNNI if change == "machine" else DOTS
    (function,) = fuse_module({"x": (data.shape, dtype)}, emit, spec)
    match = DepthwiseDots().match(function, spec)
    assert match is not None
    assert "dots" not in DepthwiseDots().default(match, spec)
