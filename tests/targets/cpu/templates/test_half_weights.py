"""Weights that 16 bits hold are stored in 16 bits; products and sums are those of float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm
from template_checks import fuse, run
from test_convolution import reference
from test_winograd import TILES, deviation, kernel, winograd
from tvm import relax

from tinsmith.targets.algorithms import DirectOnly
from tinsmith.targets.arm.specs import CORTEX_A7, CORTEX_A76
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.cpu.operators.winograd import pack_taps
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.cpu.schedules.winograd import WinogradTemplate
from tinsmith.targets.half_weights import FEWEST, half_dtype, numpy_dtype
from tinsmith.targets.schedule import match_template, schedule_function
from tinsmith.targets.x86.specs import X86_64_V3

HALVES = ("float16", "bfloat16")


def values(*shape, dtype="float32", seed=0):
    """Random float32 numbers that `dtype` holds, at the ends of its range too."""
    array = np.random.default_rng(seed).standard_normal(shape)
    array.reshape(-1)[:3] = 2.0**-20, -(2.0**-24), 300.0
    if dtype == "bfloat16":
        array.reshape(-1)[3] = 2.0**-40
    return array.astype(numpy_dtype(dtype)).astype(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_stored_in_16_bits(dtype):
    weights = values(40, 50, dtype=dtype)
    assert half_dtype(weights) == dtype
    assert half_dtype(weights.astype(np.float64)) is None
    assert half_dtype(weights.reshape(-1)[: FEWEST - 1]) is None
    # A single number that needs more digits, wherever it stands.
    weights[17, 23] = 0.1
    assert half_dtype(weights) is None
    assert half_dtype(values(40, 50)) is None


def test_numbers_beyond_float16():
    weights = np.full((40, 50), 32768, np.float32)
    assert half_dtype(weights) == "float16"
    weights[0, 0] = 131072
    assert half_dtype(weights) == "bfloat16"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("shape", "kernel_shape", "groups"),
    [
        ((2, 9, 11, 20), (5, 3, 20, 30), 1),
        ((1, 7, 7, 24), (1, 1, 24, 100), 1),
        ((1, 8, 8, 12), (3, 3, 6, 40), 2),
    ],
)
def test_convolution(shape, kernel_shape, groups, dtype, spec, schedule):
    weights, data = values(*kernel_shape, dtype=dtype), values(*shape, seed=1)
    padding = kernel_shape[0] // 2, kernel_shape[1] // 2
    function = kernel(
        {"x": shape}, weights, [*padding, *padding], spec, DirectOnly(), groups=groups
    )
    packed = pack_weights(weights.astype(numpy_dtype(dtype)), groups, spec.float_lanes)
    assert str(function.params[1].ty.dtype) == dtype
    actual = run(schedule(ConvolutionTemplate(), function), spec, [data, packed])
    assert deviation(actual, reference(data, weights, 1, padding, 1, groups)) < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("panels", [0, 1])
@pytest.mark.parametrize(("rows", "k", "columns"), [(1, 64, 100), (9, 77, 33), (40, 96, 64)])
def test_matrix_product(rows, k, columns, panels, dtype, spec, schedule):
    left, right = values(rows, k, seed=1), values(k, columns, dtype=dtype)
    function = fuse({"x": left.shape}, lambda _, x: relax.op.matmul(x[0], relax.const(right)), spec)
    packed = pack_columns(right.astype(numpy_dtype(dtype)), spec.float_lanes)
    scheduled = schedule(MatmulTemplate(), function, {"panels": panels})
    actual = run(scheduled, spec, [left, packed])
    assert deviation(actual, left.astype("float64") @ right) < 1e-6


@pytest.mark.parametrize(("rows", "panels"), [(1, 0), (128, 1)])
def test_many_rows_widen_their_columns_once(rows, panels, spec):
    right = values(96, 320, dtype="float16")
    function = fuse({"x": (rows, 96)}, lambda _, x: relax.op.matmul(x[0], relax.const(right)), spec)
    template, match = match_template(function, spec)
    assert match.arithmetic == "float16-weights"
    chosen = template.default(match, spec)
    assert chosen["panels"] == panels and not (panels and chosen["prefetch"])
    assert template.worth_trying(match, chosen, spec) or rows == 1


@pytest.mark.parametrize(
    ("tile", "dtype", "shape", "channels", "decisions"),
    [
        (2, "float16", (1, 7, 7), (64, 64), {}),
        (4, "float16", (2, 13, 15), (17, 65), {}),
        (4, "bfloat16", (1, 14, 14), (300, 20), {}),
        (4, "float16", (1, 20, 20), (130, 72), {"tiles": 13, "rows": 4, "vectors": 3, "chunks": 2}),
        (2, "bfloat16", (3, 6, 5), (8, 24), {"tiles": 5, "rows": 3, "vectors": 2, "chunks": 1}),
    ],
)
def test_winograd(tile, dtype, shape, channels, decisions, spec, schedule):
    """Also with more input channels than are transformed together, and tiles left over."""
    weights = values(3, 3, *channels, dtype=dtype)
    data = values(*shape, channels[0], seed=1)
    function = kernel({"x": data.shape}, weights, 1, spec, winograd(tile))
    packed = pack_taps(weights.astype(numpy_dtype(dtype)), spec.float_lanes)
    actual = run(schedule(WinogradTemplate(), function, decisions), spec, [data, packed])
    assert deviation(actual, reference(data, weights, 1, 1, 1, 1)) < 1e-5


@pytest.mark.parametrize(("size", "channels"), [(7, 512), (14, 256), (56, 64)])
def test_the_rule_transforms_halves_too(size, channels):
    """Where little of an image shares each widened weight as well."""
    weights = np.full((3, 3, channels, channels), 0.5, np.float32)
    function = kernel({"x": (1, size, size, channels)}, weights, 1, X86_64_V3, None)
    match = match_template(function, X86_64_V3)[1]
    assert match.arithmetic == "float16-weights F(4x4)"


@pytest.mark.parametrize("tile", TILES)
def test_the_definition_is_a_convolution(tile, spec):
    """What runs if no template takes the kernel: the naive loops."""
    weights, data = values(3, 3, 9, 18, dtype="float16"), values(1, 5, 6, 9, seed=1)
    function = kernel({"x": data.shape}, weights, 1, spec, winograd(tile))
    packed = pack_taps(weights.astype(np.float16), spec.float_lanes)
    expected = reference(data, weights, 1, 1, 1, 1)
    assert deviation(run(function, spec, [data, packed]), expected) < 1e-6


@pytest.mark.parametrize("target", [CORTEX_A76, CORTEX_A7], ids=lambda target: target.name)
def test_arm_converts_by_instructions(target):
    """No function of a compiler's library is called for it."""
    weights = values(64, 96, dtype="float16")
    function = fuse(
        {"x": (8, 64)},
        lambda b, x: relax.op.astype(
            b.emit(relax.op.matmul(x[0], relax.const(weights))), "float16"
        ),
        target,
    )
    template, match = match_template(function, target)
    default = template.default(match, target)
    scheduled = schedule_function(function, template, match, default, target)
    machine = tvm.target.Target(target.tvm_target_config())
    code = tvm.compile(scheduled.with_attr("global_symbol", "main"), target=machine)
    assembly = code.mod.inspect_source("asm")
    assert "fcvt" in assembly or "vcvt" in assembly
    called = [line.split()[-1] for line in assembly.splitlines() if "\tbl" in line]
    assert not [name for name in called if "hf" in name or "h2f" in name or "f2h" in name]


def test_numpy_has_both_dtypes():
    assert numpy_dtype("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    assert [numpy_dtype(n) for n in ("float16", "int8")] == [np.float16, np.int8]
