"""AMX kernels against exact numbers: natively where the CPU has tiles, else in emulation.

The emulation replaces the tile instructions alone: loops, addresses, packed
weights, configuration and epilogue are those of the real kernel.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
from template_checks import cpu_flags, fuse_module, run
from test_integers import convolution, extremes, sums
from tvm import relax, tirx

from tinsmith.targets.cpu.arithmetic import arithmetic_named
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.schedule import match_template
from tinsmith.targets.x86 import tile_instructions
from tinsmith.targets.x86.schedules.amx_convolution import AmxConvolutionTemplate
from tinsmith.targets.x86.schedules.amx_matmul import AmxMatmulTemplate
from tinsmith.targets.x86.specs import SAPPHIRE_RAPIDS, X86_64_V3, X86_64_V4
from tinsmith.targets.x86.tile_permission import request_tiles

EMULATOR = Path(__file__).parent / "tile_emulator.c"


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Tile registers in software, visible to the kernels of this process."""
    library = tmp_path_factory.mktemp("emulator") / "tiles.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC"]
    subprocess.run([*command, str(EMULATOR), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture(params=["native", "emulated"])
def machine(request, monkeypatch):
    """The machine that runs what has been scheduled for Sapphire Rapids."""
    if request.param == "native":
        missing = SAPPHIRE_RAPIDS.cpu_features - cpu_flags()
        if missing:
            pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
        if not request_tiles():
            pytest.skip("the system does not let this process use tiles")
        yield SAPPHIRE_RAPIDS
        return
    library = request.getfixturevalue("emulator")

    def emit(name, *operands):
        return tirx.Evaluate(tirx.call_extern("int32", f"emulated_{name}", *operands))

    monkeypatch.setattr(tile_instructions, "_emit", emit)
    library.emulated_errors()
    yield X86_64_V3
    assert library.emulated_errors() == 0


# batch, height, width, in channels, out channels, kernel, stride, padding, groups
SHAPES = [
    (1, 3, 3, 16, 7, 1, 1, 0, 1),
    (1, 7, 7, 64, 100, 1, 1, 0, 1),
    (2, 6, 5, 20, 48, 1, 1, 0, 1),
    (2, 6, 5, 12, 112, 3, 2, 0, 1),
    (1, 14, 14, 64, 32, 1, 2, 0, 1),
    (1, 15, 15, 3, 33, 7, 2, 3, 1),
    (1, 14, 14, 32, 64, 3, 1, 1, 1),
    (2, 9, 11, 20, 30, 5, 1, 2, 1),
    (1, 7, 7, 160, 40, 3, 1, 1, 1),
    (1, 13, 17, 40, 40, 3, 2, 1, 2),
    (1, 20, 1, 116, 16, 1, 1, 0, 1),
    (1, 9, 8, 17, 16, 3, 3, 1, 1),
]


def filled(array, extent, axis=-1):
    """`array` with zeros up to `extent` along an axis."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, extent - array.shape[axis])
    return np.pad(array, widths)


def apply(template, functions, decisions=None):
    """The function of the template's family, scheduled, and its workload."""
    function = next(f for f in functions if template.match(f, SAPPHIRE_RAPIDS))
    match = template.match(function, SAPPHIRE_RAPIDS)
    chosen = {**template.default(match, SAPPHIRE_RAPIDS), **(decisions or {})}
    return template.apply(function, match, chosen, SAPPHIRE_RAPIDS), match.workload


def convolve(
    data, weights, stride, padding, groups, machine, decisions=None, border=0, out="int32"
):
    emit = convolution(data, weights, stride, padding, groups, border, out)
    functions = fuse_module({"x": data.shape}, emit, SAPPHIRE_RAPIDS, str(data.dtype))
    function, w = apply(AmxConvolutionTemplate(), functions, decisions)
    depth = arithmetic_named(w.arithmetic).depth
    packed = pack_weights(filled(weights, w.in_channels, 2), groups, w.lanes, depth)
    return run(function, machine, [filled(data, w.in_channels * groups), packed])


def multiply(left, right, machine, decisions=None, out="int32"):
    def emit(_, variables):
        return relax.op.matmul(variables[0], relax.const(right), out_dtype=out)

    functions = fuse_module({"x": left.shape}, emit, SAPPHIRE_RAPIDS, str(left.dtype))
    function, w = apply(AmxMatmulTemplate(), functions, decisions)
    depth = arithmetic_named(w.arithmetic).depth
    packed = pack_columns(filled(right, w.k, 0), w.lanes, depth)
    return run(function, machine, [filled(left, w.k), packed])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_is_exact(shape, machine):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = extremes((batch, height, width, inputs), "uint8")
    weights = extremes((kernel, kernel, inputs // groups, outputs), "int8")
    actual = convolve(data, weights, stride, padding, groups, machine)
    np.testing.assert_array_equal(actual, sums(data, weights, stride, padding, groups))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_border_is_the_zero_point(stride, machine):
    data, weights = extremes((1, 9, 7, 20), "uint8"), extremes((3, 3, 20, 24), "int8")
    actual = convolve(data, weights, stride, 1, 1, machine, border=113)
    np.testing.assert_array_equal(actual, sums(data, weights, stride, 1, 1, border=113))


@pytest.mark.parametrize(
    ("rows", "columns", "outer"), [*itertools.product((1, 2, 4), (1, 2, 4), (0, 1)), (3, 3, 0)]
)
def test_every_decision_gives_the_same_result(rows, columns, outer, machine):
    data = extremes((2, 7, 11, 24), "uint8")
    weights = extremes((3, 3, 24, 90), "int8")
    decisions = {
        "row_tiles": rows,
        "column_tiles": columns,
        "columns_outer": outer,
        "blocks_per_task": 4,
    }
    actual = convolve(data, weights, 1, 1, 1, machine, decisions)
    np.testing.assert_array_equal(actual, sums(data, weights, 1, 1, 1))


@pytest.mark.parametrize("shape", [(37, 30, 17), (16, 64, 100), (100, 2052, 33), (3, 9, 128, 40)])
def test_matrix_product_is_exact(shape, machine):
    *rows, k, columns = shape
    left, right = extremes((*rows, k), "uint8"), extremes((k, columns), "int8")
    actual = multiply(left, right, machine)
    np.testing.assert_array_equal(actual, left.astype("int64") @ right.astype("int64"))


def small_numbers(shape):
    """Numbers of which products and their sums have no rounding error."""
    return np.random.default_rng(0).integers(-8, 9, shape).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_bfloat16_convolution_is_exact(shape, machine):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = small_numbers((batch, height, width, inputs))
    weights = small_numbers((kernel, kernel, inputs // groups, outputs))
    actual = convolve(data, weights, stride, padding, groups, machine, out="float32")
    np.testing.assert_array_equal(actual, sums(data, weights, stride, padding, groups))


def test_bfloat16_matrix_product_is_exact(machine):
    left, right = small_numbers((37, 100)), small_numbers((100, 50))
    expected = left.astype("float32") @ right.astype("float32")
    np.testing.assert_array_equal(multiply(left, right, machine, out="float32"), expected)


def test_requantisation_is_fused(machine):
    data, weights = extremes((1, 7, 7, 64), "uint8"), extremes((3, 3, 64, 40), "int8")
    residual = extremes((1, 7, 7, 40), "uint8")

    def emit(builder, variables):
        value = convolution(data, weights, 1, 1, 1)(builder, variables)
        value = relax.op.astype(builder.emit(value), "float32")
        value = relax.op.multiply(builder.emit(value), relax.const(np.float32(2**-12)))
        other = relax.op.astype(variables[1], "float32")
        value = relax.op.add(builder.emit(value), builder.emit(other))
        value = relax.op.clip(builder.emit(relax.op.round(builder.emit(value))), 0, 255)
        return relax.op.astype(builder.emit(value), "uint8")

    shapes = {"x": data.shape, "r": residual.shape}
    functions = fuse_module(shapes, emit, SAPPHIRE_RAPIDS, "uint8")
    function, w = apply(AmxConvolutionTemplate(), functions)
    assert len(functions) == 1
    actual = run(function, machine, [data, pack_weights(weights, 1, w.lanes, 4), residual])
    expected = np.rint(sums(data, weights, 1, 1, 1) * 2.0**-12 + residual)
    np.testing.assert_array_equal(actual, np.clip(expected, 0, 255))


def test_tile_instructions_are_in_the_object_code():
    data, weights = extremes((1, 7, 7, 64), "uint8"), extremes((3, 3, 64, 40), "int8")
    emit = convolution(data, weights, 1, 1, 1)
    functions = fuse_module({"x": data.shape}, emit, SAPPHIRE_RAPIDS, "uint8")
    function, _ = apply(AmxConvolutionTemplate(), functions)
    target = tvm.target.Target(SAPPHIRE_RAPIDS.tvm_target_config())
    code = tvm.compile(function.with_attr("global_symbol", "main"), target=target)
    assembly = code.mod.inspect_source("asm")
    for name in ("ldtilecfg", "tileloadd", "tdpbusd", "tilestored", "tilerelease"):
        assert name in assembly


def test_machines_without_tiles_use_vectors():
    data, weights = extremes((1, 7, 7, 64), "uint8"), extremes((1, 1, 64, 40), "int8")
    emit = convolution(data, weights, 1, 0, 1)
    functions = fuse_module({"x": data.shape}, emit, SAPPHIRE_RAPIDS, "uint8")
    found = {
        spec.name: {match_template(f, spec)[0].name for f in functions}
        for spec in (SAPPHIRE_RAPIDS, X86_64_V4)
    }
    assert found == {"sapphirerapids": {"convolution-amx"}, "x86-64-v4": {"convolution"}}


def test_a_row_vector_is_left_to_vector_registers():
    right = extremes((256, 64), "int8")

    def emit(_, variables):
        return relax.op.matmul(variables[0], relax.const(right), out_dtype="int32")

    functions = fuse_module({"x": (1, 256)}, emit, SAPPHIRE_RAPIDS, "uint8")
    assert [match_template(f, SAPPHIRE_RAPIDS)[0].name for f in functions] == ["matmul"]


def test_a_zero_point_of_computed_operands_is_left_to_vector_registers():
    def emit(builder, variables):
        left, right = variables
        wide = builder.emit(relax.op.astype(left, "int16"))
        shifted = builder.emit(relax.op.subtract(wide, relax.const(np.int16(7))))
        signed = builder.emit(relax.op.astype(right, "int8"))
        return relax.op.matmul(shifted, signed, out_dtype="int32")

    shapes = {"x": (32, 64), "y": (64, 32)}
    functions = fuse_module(shapes, emit, SAPPHIRE_RAPIDS, "uint8")
    names = {match_template(f, SAPPHIRE_RAPIDS)[0].name for f in functions}
    assert "matmul" in names
    assert "matmul-amx" not in names


@pytest.mark.parametrize("groups", [1, 4, 16, 29, 40, 58, 513])
@pytest.mark.parametrize("taps", [1, 3, 7])
def test_channels_are_filled_up_to_whole_tiles(groups, taps):
    whole = tile_instructions.whole_groups(groups, taps)
    chunks = tile_instructions.reduction_chunks(whole * taps)
    assert groups <= whole < groups + tile_instructions.ROWS
    assert whole * taps % chunks == 0
    assert whole * taps // chunks <= tile_instructions.ROWS
    assert chunks <= -(-(groups * taps) // tile_instructions.ROWS) + taps
