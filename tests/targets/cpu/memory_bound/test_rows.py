"""Reductions, softmax and normalisations, over any axes and awkward sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from kernel_checks import SPEC, check, floats, fused, number, run, text
from scipy import special
from tvm import relax, te, topi
from tvm.relax import op

from tinsmith.targets.schedule import schedule_module
from tinsmith.targets.x86.specs import X86_64_V4

REDUCTIONS = {
    "sum": (op.sum, np.sum),
    "mean": (op.mean, np.mean),
    "max": (op.max, np.max),
    "min": (op.min, np.min),
    "prod": (op.prod, np.prod),
}
SHAPES_AND_AXES = [
    ((7,), (0,)),
    ((5, 1000), (1,)),
    ((5, 1000), (0,)),
    ((3, 17, 33), (0, 2)),
    ((1, 7, 7, 67), (1, 2)),
    ((2, 67, 7, 7), (2, 3)),
    ((4, 3), (1,)),
    ((2, 3, 5, 130), (0, 1, 2, 3)),
    ((1, 1, 1), (0, 1, 2)),
]


@pytest.mark.parametrize(("shape", "axes"), SHAPES_AND_AXES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    operator, reference = REDUCTIONS[name]
    trivial = all(shape[a] == 1 for a in axes)
    check(
        lambda e, x: operator(x, list(axes)),
        lambda x: reference(x.astype(np.float64), axes),
        [floats(*shape)],
        "injective" if trivial else "reduction",
        tolerance=1e-5,
    )


@pytest.mark.parametrize(("operator", "extreme"), [(op.max, -np.inf), (op.min, np.inf)])
@pytest.mark.parametrize("axis", [0, 1])
def test_extremum_of_infinities(operator: Any, extreme: float, axis: int) -> None:
    values = np.full((3, 40), extreme, np.float32)
    values[1, 7] = 2.0
    (result,) = run(
        schedule_module(fused(lambda e, x: operator(x, [axis]), [values]), SPEC)[0], [values]
    )
    reference = np.max if operator is op.max else np.min
    np.testing.assert_array_equal(result, reference(values, axis))


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_fused_before_and_after(keep: bool) -> None:
    check(
        lambda e, x: op.nn.relu(
            e(op.subtract(e(op.mean(e(op.nn.relu(x)), [1, 2], keep)), number(0.4)))
        ),
        lambda x: np.maximum(np.maximum(x, 0).mean((1, 2), keepdims=keep) - 0.4, 0),
        [floats(1, 14, 14, 48)],
        "reduction injective",
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("operator", "reference"), [(op.argmax, np.argmax), (op.argmin, np.argmin)]
)
def test_index_of_extremum(operator: Any, reference: Any, axis: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, (5, 37, 41)).astype(np.float32)
    check(
        lambda e, x: operator(x, axis),
        lambda x: reference(x, axis),  # of equal values the first counts
        [values],
        "reduction",
    )


def test_index_within_a_row_of_nan() -> None:
    values = floats(3, 50)
    values[1] = np.nan
    module, _ = schedule_module(fused(lambda e, x: op.argmax(x, 1), [values]), SPEC)
    (result,) = run(module, [values])
    assert 0 <= result[1] < 50
    assert result[0] == values[0].argmax() and result[2] == values[2].argmax()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((12, 16, 128), -1), ((3, 10), -1), ((1, 1001), -1), ((2, 21, 5, 33), 1), ((37, 8), 0)],
)
@pytest.mark.parametrize("log", [False, True])
def test_softmax(shape: tuple[int, ...], axis: int, log: bool) -> None:
    operator = op.nn.log_softmax if log else op.nn.softmax
    reference = special.log_softmax if log else special.softmax
    if log and axis not in (-1, len(shape) - 1):
        pytest.skip("TVM's log_softmax takes the last axis only")
    check(
        lambda e, x: operator(x, axis),
        lambda x: reference(x.astype(np.float64), axis),
        [floats(*shape) * 5],
        "softmax",
    )


def test_softmax_of_masked_rows() -> None:
    """Masks of -inf, and scores far apart."""
    scores, mask = floats(4, 9, 33) * 100, np.zeros((1, 1, 33), np.float32)
    mask[..., 20:] = -np.inf
    check(
        lambda e, x, m: op.nn.softmax(e(op.add(e(op.multiply(x, number(0.125))), m))),
        lambda x, m: special.softmax(x.astype(np.float64) * 0.125 + m, -1),
        [scores, mask],
        "injective softmax",
    )


def test_softmax_keeps_a_row_in_the_output() -> None:
    """No row-sized buffer besides the output, no division per element."""
    module, _ = schedule_module(fused(lambda e, x: op.nn.softmax(x), [floats(64, 128)]), SPEC)
    script = text(module)
    assert "alloc_local((128,)" not in script and "alloc_buffer((128,)" not in script
    assert script.count(" / ") == 1


NORMALISATIONS = [((1, 16, 384), (-1,)), ((3, 65), (-1,)), ((2, 7, 13), (-2, -1)), ((5, 1), (-1,))]


@pytest.mark.parametrize(("shape", "axes"), NORMALISATIONS)
def test_layer_norm(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    inner = shape[len(shape) - len(axes) :]

    def reference(x: Any, gamma: Any, beta: Any) -> Any:
        x = x.astype(np.float64)
        centred = x - x.mean(axes, keepdims=True)
        return centred / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * gamma + beta

    check(
        lambda e, x, g, b: op.nn.layer_norm(x, g, b, axes=list(axes)),
        reference,
        [floats(*shape) + 3, floats(*inner, seed=1), floats(*inner, seed=2)],
        "injective" if np.prod(inner) == 1 else "normalization",
        tolerance=1e-5,
    )


def test_rms_norm() -> None:
    check(
        lambda e, x, g: op.nn.rms_norm(x, g, axes=[-1]),
        lambda x, g: x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * g,
        [floats(2, 9, 65), floats(65, seed=1)],
        "normalization",
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_norm(channels_last: bool) -> None:
    shape, axes = ((2, 9, 11, 20), (1, 2)) if channels_last else ((2, 20, 9, 11), (2, 3))
    channel = 3 if channels_last else 1

    def reference(x: Any, gamma: Any, beta: Any) -> Any:
        x = x.astype(np.float64)
        place = [1, 1, 1, 1]
        place[channel] = 20
        centred = x - x.mean(axes, keepdims=True)
        scaled = centred / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return scaled * gamma.reshape(place) + beta.reshape(place)

    check(
        lambda e, x, g, b: op.nn.instance_norm(x, g, b, channel_axis=channel, axes=list(axes)),
        reference,
        [floats(*shape), floats(20, seed=1), floats(20, seed=2)],
        "normalization",
        tolerance=1e-5,
    )


def test_group_norm() -> None:
    def reference(x: Any, gamma: Any, beta: Any) -> Any:
        grouped = x.astype(np.float64).reshape(2, 4, 5, 8, 9)
        centred = grouped - grouped.mean((2, 3, 4), keepdims=True)
        scaled = centred / np.sqrt(grouped.var((2, 3, 4), keepdims=True) + 1e-5)
        return scaled.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]

    check(
        lambda e, x, g, b: op.nn.group_norm(x, g, b, num_groups=4, channel_axis=1, axes=[2, 3]),
        reference,
        [floats(2, 20, 8, 9), floats(20, seed=1), floats(20, seed=2)],
        "normalization",
        tolerance=1e-5,
    )


@pytest.mark.parametrize("operator", [op.variance, op.std])
def test_variance(operator: Any) -> None:
    reference = np.var if operator is op.variance else np.std
    templates = "reduction" if operator is op.variance else "normalization"
    check(
        lambda e, x: operator(x, [1]),
        lambda x: reference(x.astype(np.float64), 1),
        [floats(7, 1000) + 10],
        templates,
        tolerance=1e-5,
    )


@pytest.mark.parametrize("unroll", (1, 2, 4, 8))
@pytest.mark.parametrize("extent", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 129, 257])
def test_every_unrolling_and_remainder(unroll: int, extent: int) -> None:
    class Records:
        def find(self, function: Any, template: Any, spec: Any) -> Any:
            return {"unroll": unroll} if "unroll" in template.space(None, spec) else None

    values = floats(3, extent)
    module, reports = schedule_module(
        fused(lambda e, x: op.nn.softmax(x), [values]), SPEC, Records()
    )
    (result,) = run(module, [values])
    np.testing.assert_allclose(result, special.softmax(values, -1), rtol=3e-6)
    assert extent == 1 or reports[0].source == "record"


def test_both_vector_widths_give_the_same_form() -> None:
    wide = replace(X86_64_V4, cores=2)
    for spec, lanes in ((SPEC, 8), (wide, 16)):
        module, _ = schedule_module(fused(lambda e, x: op.nn.softmax(x), [floats(64, 128)]), spec)
        assert f"T.vectorized({4 * lanes})" in text(module)


def test_rows_run_in_parallel_only_when_there_is_enough_work() -> None:
    def emit(_e: Any, x: relax.Expr) -> relax.Expr:
        return op.nn.softmax(x)

    small, _ = schedule_module(fused(emit, [floats(4, 128)]), SPEC)
    large, _ = schedule_module(fused(emit, [floats(1024, 128)]), SPEC)
    assert "parallel" not in text(small) and "parallel" in text(large)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3000, 40), 1), ((3, 9000), 1), ((5, 33), 1)])
def test_a_row_that_cannot_stay_in_the_output(shape: tuple[int, ...], axis: int) -> None:
    """Softmax to float16: the exponentials need a buffer of their own, large ones off the stack."""
    x = te.placeholder(shape, name="x")
    function = te.create_prim_func([x, topi.cast(topi.nn.softmax(x, axis), "float16")])
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    scheduled, reports = schedule_module(module, SPEC)
    assert reports[0].template == "softmax"
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        executable = tvm.compile(scheduled, target=tvm.target.Target(SPEC.tvm_target_config()))
    values = floats(*shape)
    result = tvm.runtime.tensor(np.zeros(shape, np.float16))
    executable["main"](tvm.runtime.tensor(values), result)
    expected = special.softmax(values.astype(np.float64), axis)
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-3, atol=1e-6)
