"""Branches and loops end up as plain dataflow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import model, random, run, value
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx


def _choice(else_operator: str = "Neg") -> onnx.ModelProto:
    branches = {}
    for name, operator in (("then_branch", "Exp"), ("else_branch", else_operator)):
        node = helper.make_node(operator, ["x"], [name])
        branches[name] = helper.make_graph([node], name, [], [value(name, None)])
    node = helper.make_node("If", ["condition"], ["y"], name="choice", **branches)
    inputs = [value("x", [2, 3]), value("condition", [], TensorProto.BOOL)]
    return model([node], inputs, ["y"])


@pytest.mark.parametrize("condition", [True, False])
def test_a_known_branch_is_taken(condition: bool) -> None:
    imported = import_onnx(_choice(), constants={"condition": np.array(condition)})
    data = random((2, 3))
    np.testing.assert_allclose(
        run(imported, data)[0], np.exp(data) if condition else -data, rtol=1e-5
    )
    assert not any("both branches" in note for note in imported.notes)


@pytest.mark.parametrize("condition", [True, False])
def test_an_unknown_branch_is_selected(condition: bool) -> None:
    imported = import_onnx(_choice())
    data = random((2, 3))
    result = run(imported, data, np.array(condition))[0]
    np.testing.assert_allclose(result, np.exp(data) if condition else -data, rtol=1e-5)
    assert any("both branches are computed" in note for note in imported.notes)


def test_branches_of_different_shape_become_functions() -> None:
    module = import_onnx(_choice("ReduceSum")).module
    assert sum(name.name_hint.startswith("subgraph") for name in module.get_global_vars()) == 2


def _loop(turns: int | None) -> onnx.ModelProto:
    """Doubles x in each turn and collects what it was."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Add", ["state", "state"], ["state_out"]),
            helper.make_node("Identity", ["state"], ["seen"]),
        ],
        "body",
        [
            value("turn", [], TensorProto.INT64),
            value("go_on", [], TensorProto.BOOL),
            value("state", [3]),
        ],
        [value("go_on_out", [], TensorProto.BOOL), value("state_out", [3]), value("seen", [3])],
    )
    node = helper.make_node("Loop", ["turns", "", "x"], ["last", "all"], body=body, name="loop")
    inputs = [value("x", [3])]
    if turns is None:
        return model([node], [*inputs, value("turns", [], TensorProto.INT64)], ["last", "all"])
    return model([node], inputs, ["last", "all"], {"turns": np.array(turns)})


def test_loops_of_known_length_are_unrolled() -> None:
    data = random((3,))
    last, seen = run(import_onnx(_loop(4)), data)
    np.testing.assert_allclose(last, 16 * data, rtol=1e-6)
    np.testing.assert_allclose(seen, np.stack([data, 2 * data, 4 * data, 8 * data]), rtol=1e-6)


@pytest.mark.parametrize("turns", [None, 100_000])
def test_bodies_of_loops_without_a_known_end_become_functions(turns: int | None) -> None:
    imported = import_onnx(_loop(turns))
    assert sum(n.name_hint.startswith("subgraph") for n in imported.module.get_global_vars()) == 1
    assert imported.output_shapes == ((3,), (None, 3))
    assert any("'loop'" in note for note in imported.notes)


@pytest.mark.parametrize("backward", [0, 1])
def test_scans_are_unrolled(backward: int) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "entry"], ["sum_out"]),
            helper.make_node("Identity", ["sum_out"], ["partial"]),
        ],
        "body",
        [value("sum", [2]), value("entry", [2])],
        [value("sum_out", [2]), value("partial", [2])],
    )
    node = helper.make_node(
        "Scan",
        ["start", "x"],
        ["total", "partials"],
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[backward],
    )
    proto = model([node], [value("start", [2]), value("x", [4, 2])], ["total", "partials"])
    start, data = random((2,)), random((4, 2), seed=1)
    total, partials = run(import_onnx(proto), start, data)
    ordered = data[::-1] if backward else data
    expected = start + np.cumsum(ordered, axis=0)
    np.testing.assert_allclose(partials, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, expected[-1], rtol=1e-5, atol=1e-6)


def test_loops_that_never_end_are_refused() -> None:
    assert import_onnx(_loop(3))
    with pytest.raises(ModelError, match="nothing ends this loop"):
        import_onnx(_loop(2**62))
    endless = _loop(3)
    endless.graph.node[0].input[0] = ""
    with pytest.raises(ModelError, match="nothing ends this loop"):
        import_onnx(endless)
