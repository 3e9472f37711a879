"""Samples of MetaSchedule's generic space in the place of loops that no template tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from kernel_checks import SPEC, Array, floats, fused, kernels, run
from tvm import te, topi
from tvm.relax import op

from tinsmith.targets.cpu.schedules.samples import SAMPLE, sampled
from tinsmith.targets.schedule import match_template, schedule_module

NUMBERS = (1, 2, 3, 100, 255)


class Sample:
    """Records that name one sample for every kernel."""

    def __init__(self, number: int) -> None:
        self.number = number

    def find(self, function: Any, template: Any, spec: Any) -> dict[str, int]:
        return {"unroll": 4, SAMPLE: self.number}


def windows(x: Array, window: tuple[int, ...], stride: int = 1) -> Array:
    """All windows over the last axes of `x`, those axes first, then the windows' own."""
    rank = len(window)
    axes = tuple(range(x.ndim - rank, x.ndim))
    found = np.lib.stride_tricks.sliding_window_view(x, window, axes)
    return found[(..., *(slice(None, None, stride),) * rank, *(slice(None),) * rank)]


def convolution(x: Array, w: Array, stride: int = 1) -> Array:
    """Of three axes, with a border of one zero."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])
    return np.einsum("bcdhwijk,ocijk->bodhw", windows(padded, w.shape[2:], stride), w)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_convolution_of_three_axes(number: int, stride: int) -> None:
    x, w = floats(2, 5, 6, 7, 9), floats(11, 5, 3, 3, 3, seed=1)
    before = fused(
        lambda e, x, w: op.nn.relu(e(op.nn.conv3d(x, w, strides=stride, padding=1))), [x, w]
    )
    module, (report,) = schedule_module(before, SPEC, Sample(number))
    assert (report.template, report.source) == ("reduction", "record")
    assert report.decisions == {"unroll": 4, SAMPLE: number}
    (output,) = run(module, [x, w])
    expected = np.maximum(convolution(x, w, stride), 0)
    np.testing.assert_allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_program_of_stages(number: int) -> None:
    """Two products behind each other."""
    x, y = te.placeholder((33, 41), name="x"), te.placeholder((41, 41), name="y")
    function = te.create_prim_func([x, y, topi.matmul(topi.matmul(x, y), y)])
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    scheduled, (report,) = schedule_module(module, SPEC, Sample(number))
    assert (report.template, report.source) == ("generic", "record")
    executable = tvm.compile(scheduled, target=tvm.target.Target(SPEC.tvm_target_config()))
    a, b = floats(33, 41), floats(41, 41, seed=1)
    result = tvm.runtime.tensor(np.zeros((33, 41), np.float32))
    executable["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
    np.testing.assert_allclose(result.numpy(), a @ b @ b, atol=1e-3)


def test_a_number_is_always_the_same_schedule_and_none_of_its_neighbour() -> None:
    (function,) = kernels(
        fused(lambda e, x, w: op.nn.conv3d(x, w), [floats(1, 8, 9, 9, 9), floats(8, 8, 3, 3, 3)])
    )
    first, again, other = (sampled(function, {SAMPLE: n}, SPEC) for n in (7, 7, 10))
    assert tvm_ffi.structural_equal(first, again)
    assert not tvm_ffi.structural_equal(first, other)


def test_what_memory_decides_has_no_samples() -> None:
    (function,) = kernels(fused(lambda e, x: op.mean(x, [1]), [floats(64, 640)]))
    template, match = match_template(function, SPEC)
    assert template.name == "reduction"
    assert SAMPLE not in template.default(match, SPEC)
    assert SAMPLE not in template.space(match, SPEC)


def test_a_sample_is_tried_with_one_unrolling_only() -> None:
    (function,) = kernels(
        fused(lambda e, x, w: op.nn.conv3d(x, w), [floats(1, 8, 9, 9, 9), floats(8, 8, 3, 3, 3)])
    )
    template, match = match_template(function, SPEC)
    assert template.worth_trying(match, {"unroll": 8, SAMPLE: 0}, SPEC)
    assert template.worth_trying(match, {"unroll": 4, SAMPLE: 9}, SPEC)
    assert not template.worth_trying(match, {"unroll": 8, SAMPLE: 9}, SPEC)
