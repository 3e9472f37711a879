"""Kernels that decompress their weights, against numpy products of the dequantised weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
from template_checks import fuse, run
from test_convolution import pair, reference
from tvm import relax

from tinsmith.targets.arm.specs import CORTEX_A7, CORTEX_A72
from tinsmith.targets.compressed_weights import (
    EVEN_LEVELS,
    CompressedWeights,
    Grouping,
    decompress_call,
)
from tinsmith.targets.cpu.operators import legalize_map
from tinsmith.targets.cpu.operators.compressed_weights import stored_operands
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.schedule import match_template, schedule_function

KINDS = ("int8", "int4", "codebook")
EXACT_KINDS = ("int8 with offsets", "int4 with offsets", "int4 in float32")


def compressed(shape, size, kind):
    """Random codes of the whole range, scales of both signs."""
    random = np.random.default_rng(0)
    grouping = Grouping.of(int(np.prod(shape[:-2])), shape[-2], size)
    scales = random.uniform(-1, 1, (grouping.count, shape[-1])).astype("float16")
    single = random.uniform(-1, 1, scales.shape).astype("float32")
    offsets = random.integers(-8, 300, scales.shape).astype("float32")
    if kind == "int8 with offsets":
        codes = random.integers(-128, 128, shape).astype("int8")
        return CompressedWeights(codes, single, None, grouping, offsets)
    if kind == "int8":
        codes = random.integers(-128, 128, shape).astype("int8")
        return CompressedWeights(codes, scales, None, grouping)
    codes = random.integers(0, 16, shape).astype("uint8")
    if kind == "int4 with offsets":
        return CompressedWeights(codes, single, None, grouping, offsets)
    if kind == "int4 in float32":
        return CompressedWeights(codes, single, None, grouping)
    learned = np.sort(random.standard_normal(16)).astype("float32")
    return CompressedWeights(codes, scales, EVEN_LEVELS if kind == "int4" else learned, grouping)


def matmul(left, weights, spec):
    """The fused product with a bias behind it, and its packed operands."""

    def emit(builder, variables):
        product = relax.op.matmul(variables[0], builder.emit(decompress_call(weights)))
        return relax.op.add(builder.emit(product), variables[1])

    function = fuse({"x": left, "b": weights.codes.shape[-1:]}, emit, spec)
    return function, stored_operands(weights, lambda array: pack_columns(array, spec.float_lanes))


def convolution(shape, weights, layout, spec):
    batch, height, width, inputs, _, _, stride, padding, dilation, groups = shape

    def emit(builder, variables):
        return relax.op.nn.conv2d(
            variables[0],
            builder.emit(decompress_call(weights)),
            strides=stride,
            padding=pair(padding),
            dilation=dilation,
            groups=groups,
            data_layout=layout,
            kernel_layout="HWIO",
            out_layout="NHWC",
        )

    order = (batch, height, width, inputs) if layout == "NHWC" else (batch, inputs, height, width)
    packed = stored_operands(weights, lambda array: pack_weights(array, groups, spec.float_lanes))
    return fuse({"x": order}, emit, spec), packed


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


# left shape, columns, group size
PRODUCTS = [
    ((1, 1), 1, 16),
    ((1, 64), 100, 32),
    ((3, 133), 50, 32),
    ((2, 5, 97), 33, 64),
    ((130, 96), 100, 128),
]


@pytest.mark.parametrize("panels", [0, 1])
@pytest.mark.parametrize(
    ("left", "columns", "size", "kind"),
    [(*product, kind) for kind in KINDS for product in PRODUCTS]
    + [(*product, kind) for kind in EXACT_KINDS for product in PRODUCTS[2:4]],
    ids=str,
)
def test_matrix_product(left, columns, size, kind, panels, spec, schedule):
    random = np.random.default_rng(1)
    weights = compressed((left[-1], columns), size, kind)
    data = random.standard_normal(left).astype("float32")
    bias = random.standard_normal(columns).astype("float32")
    function, packed = matmul(left, weights, spec)
    scheduled = schedule(MatmulTemplate(), function, {"panels": panels})
    actual = run(scheduled, spec, [data, *packed, bias])
    assert_close(actual, data.astype("float64") @ weights.dequantize() + bias)


# batch, height, width, in channels, out channels, kernel, stride, padding, dilation, groups
SHAPES = [
    (1, 1, 1, 5, 7, 1, 1, 0, 1, 1),
    (2, 6, 5, 12, 112, 1, 1, 0, 1, 1),
    (1, 6, 6, 97, 33, 1, 2, 0, 1, 1),
    (2, 5, 5, 3, 17, 3, 1, 1, 1, 1),
    (3, 8, 6, 40, 80, 3, 2, 1, 1, 1),
    (1, 9, 9, 8, 8, 3, 1, 4, 2, 1),
    (1, 12, 12, 12, 24, 3, 1, 1, 1, 2),
    (2, 40, 1, 8, 16, (3, 1), 2, (1, 0), 1, 1),
]


@pytest.mark.parametrize(
    ("kind", "size", "panels"),
    [("int8", 64, 0), ("int4", 32, 0), ("codebook", 16, 0), ("int8", 16, 1), ("codebook", 32, 1)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape, kind, size, panels, spec, schedule):
    batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups = shape
    weights = compressed((*pair(kernel), inputs // groups, outputs), size, kind)
    data = np.random.default_rng(1).standard_normal((batch, height, width, inputs))
    function, packed = convolution(shape, weights, "NHWC", spec)
    scheduled = schedule(ConvolutionTemplate(), function, {"panels": panels})
    actual = run(scheduled, spec, [data.astype("float32"), *packed])
    expected = reference(data, weights.dequantize(), stride, padding, dilation, groups)
    assert_close(actual, expected)


def test_the_first_convolution_reads_nchw(spec, schedule):
    shape = (1, 15, 15, 4, 33, 5, 3, 2, 1, 1)
    weights = compressed((5, 5, 4, 33), 64, "codebook")
    data = np.random.default_rng(1).standard_normal((1, 15, 15, 4))
    function, packed = convolution(shape, weights, "NCHW", spec)
    planes = np.ascontiguousarray(data.transpose(0, 3, 1, 2), "float32")
    actual = run(schedule(ConvolutionTemplate(), function), spec, [planes, *packed])
    assert_close(actual, reference(data, weights.dequantize(), 3, 2, 1, 1))


@pytest.mark.parametrize(
    ("rows", "vectors", "panels"), list(itertools.product((1, 4), (1, 3), (0, 1)))
)
def test_every_decision_gives_the_same_result(rows, vectors, panels, spec, schedule):
    weights = compressed((24, 70), 16, "int4")
    data = np.random.default_rng(1).standard_normal((9, 24)).astype("float32")
    function, packed = matmul(data.shape, weights, spec)
    decisions = {"rows": rows, "vectors": vectors, "panels": panels}
    scheduled = schedule(MatmulTemplate(), function, decisions)
    actual = run(scheduled, spec, [data, *packed, np.zeros(70, "float32")])
    assert_close(actual, data.astype("float64") @ weights.dequantize())


def test_panels_are_for_many_rows(spec):
    weights = compressed((256, 64), 64, "int4")
    template = MatmulTemplate()
    chosen = {}
    for rows in (1, 4, 512):
        function, _ = matmul((rows, 256), weights, spec)
        match = template.match(function, spec)
        chosen[rows] = template.default(match, spec)["panels"]
        assert template.space(match, spec)["panels"] == (0, 1)
    assert chosen == {1: 0, 4: 0, 512: 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [CORTEX_A72, CORTEX_A7], ids=lambda target: target.name)
def test_compiles_for_arm(kind, target):
    weights = compressed((3, 3, 12, 20), 32, kind)
    function, _ = convolution((1, 8, 8, 12, 20, 3, 1, 1, 1, 1), weights, "NHWC", target)
    template, match = match_template(function, target)
    assert template.name == "convolution"
    default = template.default(match, target)
    scheduled = schedule_function(function, template, match, default, target)
    machine = tvm.target.Target(target.tvm_target_config())
    code = tvm.compile(scheduled.with_attr("global_symbol", "main"), target=machine)
    assert ".text" in code.mod.inspect_source("asm")


def test_a_group_of_four_bits_is_an_eighth_of_floats():
    weights = compressed((3, 3, 64, 64), 64, "int4")
    assert weights.stored_bytes / (weights.codes.size * 4) == pytest.approx(0.125 + 2 / (4 * 64))


def test_what_no_kernel_reads_is_decompressed(spec):
    """A vector times a matrix keeps TVM's definition, which reads float weights."""
    weights = compressed((8, 4), 16, "int4")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((8,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            product = relax.op.matmul(x, builder.emit(decompress_call(weights)))
            output = builder.emit_output(product)
        builder.emit_func_output(output)
    lowered = relax.transform.LegalizeOps(legalize_map(spec))(builder.get())
    assert "decompress" not in relax.transform.DeadCodeElimination()(lowered).script()
