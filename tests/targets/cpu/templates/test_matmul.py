"""The matrix product template against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from template_checks import fuse, run
from tvm import relax

from tinsmith.targets.cpu.operators.matmul import pack_columns
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate

# left shape, right shape, whether the right operand is constant
PROBLEMS = [
    ((1, 1), (1, 1), True),
    ((3, 5), (5, 1), True),
    ((3, 5), (5, 1), False),
    ((7, 3), (3, 17), True),
    ((1, 77), (77, 33), False),
    ((1, 64), (64, 1000), True),
    ((2, 3, 5, 7), (7, 9), True),
    ((2, 3, 5, 7), (3, 7, 37), False),
    ((4, 1, 5, 7), (1, 3, 7, 20), False),
    ((2, 50, 64), (64, 50), False),
    ((2, 3, 5, 7), (2, 3, 7, 9), True),
    ((12, 20, 32), (12, 32, 49), False),
    ((130, 96), (96, 100), True),
]


def problem(left_shape, right_shape, constant, spec):
    random = np.random.default_rng(0)
    left = random.standard_normal(left_shape).astype("float32")
    right = random.standard_normal(right_shape).astype("float32")
    expected = left.astype("float64") @ right
    bias = random.standard_normal(right_shape[-1]).astype("float32")
    residual = random.standard_normal(expected.shape).astype("float32")
    expected = np.maximum(expected + bias, 0) + residual

    def emit(builder, variables):
        operand = relax.const(right) if constant else variables[3]
        value = builder.emit(relax.op.matmul(variables[0], operand))
        value = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(value, variables[1]))))
        return relax.op.add(value, variables[2])

    shapes = {"x": left.shape, "b": bias.shape, "r": residual.shape}
    if not constant:
        shapes["y"] = right.shape
    function = fuse(shapes, emit, spec)
    packed = pack_columns(right, spec.float_lanes) if constant and right.ndim == 2 else right
    return function, [left, packed, bias, residual], expected


@pytest.mark.parametrize(("left", "right", "constant"), PROBLEMS, ids=str)
def test_matches_numpy(left, right, constant, spec, schedule):
    function, arguments, expected = problem(left, right, constant, spec)
    actual = run(schedule(MatmulTemplate(), function), spec, arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "vectors", "outer", "prefetch"),
    [
        (*tile, *order)
        for tile in itertools.product((1, 4, 6), (1, 3))
        for order in ((0, 0), (1, 0), (1, 1))
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_every_decision_gives_the_same_result(
    rows, vectors, outer, prefetch, constant, spec, schedule
):
    function, arguments, expected = problem((2, 9, 25), (25, 70), constant, spec)
    decisions = {"rows": rows, "vectors": vectors, "columns_outer": outer, "prefetch": prefetch}
    actual = run(schedule(MatmulTemplate(), function, decisions), spec, arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_stay_in_the_cache_are_prefetched(spec, schedule):
    columns = spec.l2_bytes // 4 // 64
    function, arguments, expected = problem((2, 33, 65), (65, columns), True, spec)
    template = MatmulTemplate()
    match = template.match(function, spec)
    chosen = template.default(match, spec)
    assert chosen["prefetch"] == 1
    assert template.worth_trying(match, chosen, spec)
    assert not template.worth_trying(match, {**chosen, "columns_outer": 0}, spec)
    scheduled = schedule(template, function)
    assert "llvm.prefetch" in scheduled.script()
    actual = run(scheduled, spec, arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("left", "right", "constant"),
    [((1, 64), (64, 40000), True), ((64, 64), (64, 40000), False), ((64, 8), (8, 32), True)],
    ids=["few rows", "computed", "small"],
)
def test_others_are_not_prefetched(left, right, constant, spec):
    function, _, _ = problem(left, right, constant, spec)
    template = MatmulTemplate()
    assert template.default(template.match(function, spec), spec)["prefetch"] == 0
