"""Integer kernels of ARM processors against exact numpy integers, run by an emulator."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from foreign_checks import run_foreign
from template_checks import fuse_module
from test_integers import SHAPES, convolution, extremes, sums
from tvm import relax

from tinsmith.targets.cpu.arithmetic import arithmetic_named, choose_arithmetic
from tinsmith.targets.cpu.operators.convolution import pack_weights
from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.registry import get_target

EMULATORS = {"aarch64": ["qemu-aarch64-static", "-cpu", "max"], "arm": ["qemu-arm-static"]}
EXPECTED = {
    "cortex-a7": "armv7-int8",
    "cortex-a53": "neon-int8",
    "cortex-a72": "neon-int8",
    "cortex-a76": "sdot",
    "neoverse-n2": "smmla",
}


@pytest.mark.parametrize(("target", "name"), EXPECTED.items())
def test_the_best_instructions_are_chosen(target, name):
    chosen = choose_arithmetic("int8", "int8", get_target(target))
    assert chosen is not None
    assert chosen.name == name


def scheduled(template, functions, spec):
    function = next(f for f in functions if template.match(f, spec))
    match = template.match(function, spec)
    return template.apply(function, match, template.default(match, spec), spec), match.workload


def filled(array, extent, axis=-1):
    """`array` with zeros up to `extent` along an axis."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, extent - array.shape[axis])
    return np.pad(array, widths)


def convolution_case(shape, spec):
    batch, height, width, inputs, outputs, kernel, stride, padding, groups = shape
    data = extremes((batch, height, width, inputs), "int8")
    weights = extremes((kernel, kernel, inputs // groups, outputs), "int8")
    emit = convolution(data, weights, stride, padding, groups)
    functions = fuse_module({"x": data.shape}, emit, spec, "int8")
    if groups == inputs == outputs:
        function, _ = scheduled(ChannelwiseTemplate(), functions, spec)
        arguments = [data, weights[:, :, 0]]
    else:
        function, w = scheduled(ConvolutionTemplate(), functions, spec)
        depth = arithmetic_named(w.arithmetic).depth
        packed = pack_weights(filled(weights, w.in_channels, 2), groups, w.lanes, depth)
        arguments = [filled(data, w.in_channels * groups), packed]
    return (function, arguments), sums(data, weights, stride, padding, groups)


def matmul_case(shape, spec):
    rows, k, columns = shape
    left, right = extremes((rows, k), "int8"), extremes((k, columns), "int8")

    def emit(_, variables):
        return relax.op.matmul(variables[0], relax.const(right), out_dtype="int32")

    functions = fuse_module({"x": left.shape}, emit, spec, "int8")
    function, w = scheduled(MatmulTemplate(), functions, spec)
    packed = pack_columns(filled(right, w.k, 0), w.lanes, arithmetic_named(w.arithmetic).depth)
    return (function, [filled(left, w.k), packed]), left.astype("int64") @ right.astype("int64")


@pytest.mark.parametrize("target", ["cortex-a7", "cortex-a53", "cortex-a76", "neoverse-n2"])
def test_kernels_are_exact(target, tmp_path):
    spec = get_target(target)
    emulator, *options = EMULATORS[spec.architecture]
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")
    found = {f"conv{i}": convolution_case(shape, spec) for i, shape in enumerate(SHAPES)}
    found["depthwise"] = convolution_case((2, 9, 11, 33, 33, 3, 2, 1, 33), spec)
    for i, shape in enumerate([(1, 64, 100), (37, 30, 17), (5, 4, 70)]):
        found[f"matmul{i}"] = matmul_case(shape, spec)
    cases = {name: case for name, (case, _) in found.items()}
    outputs = run_foreign(cases, spec, [emulator, *options], tmp_path)
    for name, (_, expected) in found.items():
        np.testing.assert_array_equal(outputs[name], expected, err_msg=name)
