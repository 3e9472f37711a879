"""The kernels of `quantize` against the definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from template_checks import run
from tvm import relax, tirx

from tinsmith.passes.graph import Legalize
from tinsmith.passes.quantize import numbers
from tinsmith.passes.quantize.operators import Parameters, quantize_call
from tinsmith.targets.cpu.operators.quantization import quantization_legalizers
from tinsmith.targets.cpu.schedules.injective import Injective


def values(scale):
    """Multiples of half a step, where ties are, their neighbours, and what saturates."""
    halves = np.arange(-700, 700, dtype=np.float32) * np.float32(scale / 2)
    beside = np.nextafter(halves, np.float32(np.inf))
    far = np.float32([1e30, -1e30, np.inf, -np.inf, 0.0, -0.0, 3e9, -3e9])
    return np.concatenate([halves, beside, far])


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [
        ("uint8", 0.25, 0),
        ("uint8", 0.1, 131),
        ("int8", 0.25, -7),
        ("int8", 1.0, 127),
        ("int16", 0.5, -30000),
        ("uint16", 3.0, 65535),
    ],
)
def test_rounds_halves_to_even_and_saturates(dtype, scale, zero_point, spec, schedule):
    x = values(scale)
    variable = relax.Var("x", relax.TensorType(x.shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [variable]):
        with builder.dataflow():
            call = quantize_call(variable, Parameters(scale, zero_point, dtype))
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    lowered = Legalize(quantization_legalizers())(builder.get())
    (kernel,) = [f for f in lowered.functions.values() if isinstance(f, tirx.PrimFunc)]
    info = np.iinfo(dtype)
    codes = numbers.IntegerRange(info.min, info.max, dtype)
    expected = numbers.quantize(x, np.float32(scale), zero_point, codes)
    actual = run(schedule(Injective(), kernel), spec, [x])
    np.testing.assert_array_equal(actual, expected)
