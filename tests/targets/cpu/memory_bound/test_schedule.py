"""Which template schedules what; records, reports, sharing; what has no template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from kernel_checks import SPEC, check, floats, fused, kernels, number, run, text
from tvm import relax, tirx
from tvm.relax import op

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.schedules.injective import Injective
from tinsmith.targets.registry import backends
from tinsmith.targets.schedule import match_template, schedule_module


def softmax(_emit: Any, x: relax.Expr) -> relax.Expr:
    return op.nn.softmax(x)


class Records:
    """Answers every question with the same decisions."""

    def __init__(self, **decisions: int) -> None:
        self.decisions = decisions
        self.asked: list[str] = []

    def find(self, function: Any, template: Any, spec: Any) -> dict[str, int] | None:
        self.asked.append(template.name)
        return self.decisions


def test_pooling_without_an_operator_definition_is_generic() -> None:
    values = floats(1, 8, 12, 12)
    module, reports = check(
        lambda e, x: op.nn.max_pool2d(x, (3, 3), strides=(2, 2), padding=(1, 1)),
        lambda x: np.lib.stride_tricks.sliding_window_view(
            np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf), (3, 3), (2, 3)
        )[:, :, ::2, ::2].max((4, 5)),
        [values],
        "generic",
    )
    assert reports[0].flops > 0
    assert "vectorized" in text(module)


def test_product_without_an_operator_definition_still_vectorises() -> None:
    module, _ = check(
        lambda e, x, y: op.matmul(x, y),
        np.matmul,
        [floats(2, 19, 23), floats(2, 23, 37, seed=1)],
        "reduction",
        tolerance=1e-5,
    )
    assert "vectorized" in text(module)


def test_what_is_no_program_is_left_alone_and_reported() -> None:
    values, updates = floats(30, 3), floats(5, 3, seed=1)
    indices = np.arange(15).reshape(5, 3)
    before = fused(lambda e, x, i, u: op.scatter_elements(x, i, u, axis=0),
                   [values, indices, updates])  # fmt: skip
    module, reports = schedule_module(before, SPEC)
    assert [r.template for r in reports] == ["unscheduled"]
    expected = values.copy()
    np.put_along_axis(expected, indices, updates, 0)
    np.testing.assert_array_equal(run(module, [values, indices, updates])[0], expected)


def test_loops_that_are_finished_are_reported_as_unscheduled() -> None:
    x, y = (tirx.decl_buffer((8,), "float32", n) for n in "xy")
    body = loops.serial("i", 8, lambda i: loops.store(y, [i], loops.load(x, i)))
    function = tirx.PrimFunc([x, y], body).with_attr("global_symbol", "copy")
    module, reports = schedule_module(tvm.IRModule({"copy": function}), SPEC)
    assert reports[0].template == "unscheduled" and reports[0].bytes == 64
    assert tvm_ffi.structural_equal(module["copy"], function)


def test_recurrent_functions_keep_their_loops() -> None:
    x, y = (tirx.decl_buffer((8,), "float32", n) for n in "xy")
    body = loops.vectorized("i", 8, lambda i: loops.store(y, [i], tirx.tanh(loops.load(x, i))))
    workload = "lstm steps=5 batch=2 hidden=8 directions=1"
    function = tirx.PrimFunc([x, y], body).with_attrs(
        {"tinsmith.template": "recurrent", "tinsmith.workload": workload, "global_symbol": "r"}
    )
    module, reports = schedule_module(tvm.IRModule({"r": function}), SPEC)
    assert reports[0].template == "recurrent"
    assert reports[0].flops == 2 * 5 * 2 * 8 * 32
    assert "T.tanh(" not in module["r"].script() and "vectorized" in module["r"].script()


def test_records_win_over_defaults() -> None:
    records = Records(unroll=1)
    module, (report,) = schedule_module(fused(softmax, [floats(4, 64)]), SPEC, records)
    assert records.asked == ["softmax"]
    assert report.source == "record" and report.decisions == {"unroll": 1}
    assert "vectorized(32)" not in text(module)


def test_a_record_of_other_decisions_is_not_used() -> None:
    _, (report,) = schedule_module(fused(softmax, [floats(4, 64)]), SPEC, Records(tile=3, unroll=1))
    assert report.source == "default (record does not fit)"
    assert report.decisions == {"unroll": 4}


def test_equal_functions_are_scheduled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Injective.apply

    def counted(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(Injective, "apply", counted)
    function = kernels(fused(lambda e, x: op.nn.relu(x), [floats(3, 5)]))[0]
    module = tvm.IRModule({n: function.with_attr("global_symbol", n) for n in ("first", "second")})
    scheduled, reports = schedule_module(module, SPEC)
    assert len(calls) == 1
    assert [r.name for r in reports] == ["first", "second"]
    for name in ("first", "second"):
        assert scheduled[name].attrs["global_symbol"] == name


def test_reports_count_arithmetic_and_traffic() -> None:
    _, (report,) = schedule_module(
        fused(lambda e, x, y: op.add(e(op.multiply(x, number(2))), y), [floats(10, 10)] * 2), SPEC
    )
    assert report.flops == 200
    assert report.bytes == 3 * 400


def test_every_template_has_a_name_and_the_last_takes_everything() -> None:
    for backend in backends():
        names = [t.name for t in backend.templates]
        assert len(set(names)) == len(names) and names[-2:] == ["generic", "unscheduled"]
    function = tirx.PrimFunc([], tirx.Evaluate(tirx.const(0, "int32")))
    assert match_template(function, SPEC)[0].name == "unscheduled"


def test_defaults_lie_within_the_space() -> None:
    for emit, inputs in (
        (softmax, [floats(4, 64)]),
        (lambda e, x: op.mean(x, [1]), [floats(4, 64)]),
        (lambda e, x: op.nn.max_pool2d(x, (2, 2)), [floats(1, 4, 8, 8)]),
    ):
        function = kernels(fused(emit, inputs))[0]
        template, match = match_template(function, SPEC)
        space = template.space(match, SPEC)
        default = template.default(match, SPEC)
        assert set(space) == set(default)
        assert all(default[name] in values for name, values in space.items())
