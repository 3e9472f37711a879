"""Other implementations of ONNX: what they throw, where they differ, and what rounding explains."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinsmith.compiler.api import compile_to
from tinsmith.compiler.errors import ModelError, VerificationError
from tinsmith.compiler.evaluate import opinions as opinions_module
from tinsmith.compiler.evaluate.opinions import Opinions
from tinsmith.compiler.evaluate.oracle import EVALUATOR, ONNX_RUNTIME, UNOPTIMISED
from tinsmith.compiler.evaluate.peers import OnnxRuntime, installed
from tinsmith.compiler.evaluate.verify import verify
from tinsmith.compiler.frontends.onnx.reference import OnnxReference

pytestmark = pytest.mark.skipif(not installed(OnnxRuntime), reason="ONNX Runtime is not installed")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    kind: int = FLOAT,
    size: int = 4,
) -> onnx.ModelProto:
    """x (1, size) -> y."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [1, size])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def divided_by_minus_one() -> onnx.ModelProto:
    """The smallest integer divided by x - x - 1: processors end a program for that."""
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Add", ["zero", "minus"], ["divisor"]),
        helper.make_node("Div", ["smallest", "divisor"], ["y"]),
    ]
    constants = {"minus": np.array([[-1]]), "smallest": np.array([[-(2**63)]], np.int64)}
    return model(nodes, constants, INT64)


def beside_the_table() -> onnx.ModelProto:
    """A computed index far out of its table: ONNX Runtime refuses to run."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Add", ["square", "far"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    table = {"table": np.arange(3), "far": np.array(99, np.int64)}
    return model(nodes, table, INT64)


def reference(proto: onnx.ModelProto) -> OnnxReference:
    return OnnxReference(proto, proto.SerializeToString())


def test_what_kills_another_runtime_is_a_note() -> None:
    x = {"x": np.ones((1, 4), np.int64)}
    judge = reference(divided_by_minus_one())
    assert judge.run(x)["y"].tolist() == [[-(2**63)] * 4]
    (note,) = judge.notes
    assert "ONNX Runtime" in note and "died of SIGFPE" in note and "onnx reference" in note
    # The next question is answered by a new process.
    healthy = model([helper.make_node("Neg", ["x"], ["y"])], {}, INT64)
    assert reference(healthy).run(x)["y"].tolist() == [[-1] * 4]


def test_who_throws_is_named_and_the_next_is_asked() -> None:
    judge = reference(beside_the_table())
    with pytest.raises(ModelError) as error:
        judge.run({"x": np.ones((1, 4), np.int64)})
    assert str(error.value).startswith("ONNX Runtime")
    assert "onnx reference evaluator" in str(error.value)
    assert len(str(error.value)) < 600


def test_models_that_others_cannot_run_compile_with_a_note(tmp_path: Path) -> None:
    report = compile_to(divided_by_minus_one(), tmp_path / "m", runner=False, static_library=False)
    assert all(difference.agrees for difference in report.differences)
    assert report.reference.startswith("onnx reference evaluator")
    assert any("died of SIGFPE" in note for note in report.notes)
    report = compile_to(beside_the_table(), tmp_path / "n", runner=False, static_library=False)
    assert report.differences == ()
    assert any(note.startswith("no golden vectors: ONNX Runtime") for note in report.notes)


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", [n], [f"{n}_out"]) for n in ("go", "value")],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", FLOAT, [1, 4]),
        ],
    )
    endless = model(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        {"trips": np.array(2**62, np.int64)},
    )
    # Without a limit it would not end.
    asked = Opinions(endless.SerializeToString(), 1)
    answer = asked.ask(ONNX_RUNTIME, {"x": np.ones((1, 4), np.float32)}, 1.0)
    assert answer == "no answer after 1 s"


def test_the_process_is_one_and_ends_with_nothing_to_do() -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {})
    x = {"x": np.ones((1, 4), np.float32)}
    reference(proto).run(x)
    first = opinions_module._Child.running().process
    for who in (ONNX_RUNTIME, UNOPTIMISED, EVALUATOR):
        answer = Opinions(proto.SerializeToString(), 1).ask(who, x, 60)
        assert answer["y"].tolist() == [[-1] * 4]
    assert opinions_module._Child.running().process is first
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert reference(proto).run(x)["y"].tolist() == [[-1] * 4]


# disagreement ----------------------------------------------------------------


def faint(gain: float = 6.0) -> onnx.ModelProto:
    """Sums that cancel, far down the flank of a sigmoid: outputs near 1e-5.

    As a text detector computes on noise: what is left of the numbers is mostly rounding.
    """
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((256, 64)).astype(np.float32) * np.float32(100)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["sums"]),
        helper.make_node("Add", ["sums", "large"], ["shifted"]),
        helper.make_node("Sub", ["shifted", "large"], ["left"]),
        helper.make_node("Mul", ["left", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "low"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["y"]),
    ]
    constants = {
        "w": weights,
        "large": np.full((1, 64), 3e4, np.float32),
        "gain": np.array(gain * 1e-4, np.float32),
        "low": np.full((1, 64), -12, np.float32),
    }
    return model(nodes, constants, size=256)


def by_numpy(proto: onnx.ModelProto, x: np.ndarray, order: np.ndarray, fault: float = 0.0):
    """The same in numpy, products summed one by one in another order; `fault` spoils a weight."""
    w, large, gain, low = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    w = w.copy()
    w[3] *= np.float32(1 + fault)
    total = np.zeros((1, w.shape[1]), np.float32)
    for row in order:
        total = total + x[:, row : row + 1] * w[row]
    logits = ((total + large) - large) * gain + low
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def test_tolerances_know_what_rounding_does() -> None:
    proto = faint()
    judge = reference(proto)
    x = np.random.default_rng(1).standard_normal((1, 256)).astype(np.float32)
    expected = judge.run({"x": x})
    assert np.ptp(expected["y"]) < 1e-3
    order = np.random.default_rng(2).permutation(256)
    settled = judge.settle({"x": x}, {"y": by_numpy(proto, x, order)}, expected)
    assert settled.agrees, settled.differences
    for fault in (0.3, -0.3, 1.0, -1.0):
        spoilt = judge.settle({"x": x}, {"y": by_numpy(proto, x, order, fault)}, expected)
        assert not spoilt.agrees, (fault, spoilt.differences)


def close_choices() -> onnx.ModelProto:
    """The larger of two sums, 400 times; in five of them the two are equal but for rounding."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((64, 400, 2)).astype(np.float32)
    weights[:, :5, 1] = weights[:, :5, 0]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["sums"]),
        helper.make_node("Reshape", ["sums", "pairs"], ["paired"]),
        helper.make_node("Add", ["paired", "nudge"], ["nudged"]),
        helper.make_node("ArgMax", ["nudged"], ["chosen"], axis=1, keepdims=0),
    ]
    nudge = np.zeros((400, 2), np.float32)
    nudge[:5, 1] = 1e-6 * generator.choice([-1, 1], 5)
    proto = model(
        nodes, {"w": weights.reshape(64, 800), "pairs": np.array([400, 2]), "nudge": nudge}, size=64
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("chosen", INT64, [400]))
    return proto


def test_choices_may_differ_where_rounding_decides() -> None:
    proto = close_choices()
    judge = reference(proto)
    x = {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}
    expected = judge.run(x)
    other = expected["chosen"].copy()
    other[2] = 1 - other[2]
    settled = judge.settle(x, {"chosen": other}, expected)
    assert settled.agrees, settled.differences
    assert "differs in 1 of 400 values" in settled.note
    assert settled.expected["chosen"] is other
    for count in (5, 40, 400):
        wrong = expected["chosen"].copy()
        wrong[-count:] = 1 - wrong[-count:]
        assert not judge.settle(x, {"chosen": wrong}, expected).agrees


def test_choices_are_exact_where_rounding_does_not_decide() -> None:
    nodes = [helper.make_node("Greater", ["x", "zero"], ["y"])]
    proto = model(nodes, {"zero": np.zeros(1, np.float32)})
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    judge = reference(proto)
    x = {"x": np.array([[1, -1, 2, -2]], np.float32)}
    expected = judge.run(x)
    assert judge.settle(x, {"y": np.array([[True, False, True, False]])}, expected).agrees
    assert not judge.settle(x, {"y": np.array([[True, True, True, False]])}, expected).agrees


def test_an_ordinary_model_keeps_its_tolerance() -> None:
    """A wrong result is no nearer to right for being asked about again."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((4, 16)).astype(np.float32)}
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights)
    judge = reference(proto)
    x = {"x": np.ones((1, 4), np.float32)}
    expected = judge.run(x)
    right = expected["y"] * np.float32(1 + 1e-6)
    assert judge.settle(x, {"y": right}, expected).agrees
    for wrong in (
        expected["y"] * np.float32(1.004),
        expected["y"] + np.float32(0.01) * np.ptp(expected["y"]),
        np.where(np.arange(16) == 3, 0, expected["y"]).astype(np.float32),
        expected["y"][:, ::-1],
        np.full_like(expected["y"], np.nan),
        expected["y"].astype(np.int64),
    ):
        assert not judge.settle(x, {"y": wrong}, expected).agrees


@pytest.mark.parametrize("right", [UNOPTIMISED, EVALUATOR])
def test_who_differs_is_named(right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {})
    x = {"x": np.arange(4, dtype=np.float32)[None]}
    judge = reference(proto)
    honest = Opinions.ask

    def ask(self: Opinions, who: str, inputs, seconds: float):
        answer = honest(self, who, inputs, seconds)
        order = (ONNX_RUNTIME, UNOPTIMISED, EVALUATOR)
        return {"y": answer["y"] * 2} if order.index(who) < order.index(right) else answer

    monkeypatch.setattr(Opinions, "ask", ask)
    settled = judge.settle(x, {"y": -x["x"]}, judge.run(x))
    assert settled.agrees
    assert settled.label.startswith("ONNX Runtime" if right == UNOPTIMISED else "onnx reference")
    assert "differs from" in settled.note and "output y" in settled.note
    assert not judge.settle(x, {"y": x["x"]}, judge.run(x)).agrees


def test_the_module_keeps_the_outputs_that_it_agrees_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = model([helper.make_node("Neg", ["x"], ["y"])], {})
    honest = Opinions.ask

    def ask(self: Opinions, who: str, inputs, seconds: float):
        answer = honest(self, who, inputs, seconds)
        return {"y": answer["y"] + 1} if who == ONNX_RUNTIME else answer

    monkeypatch.setattr(Opinions, "ask", ask)
    report = compile_to(proto, tmp_path / "m", runner=False, static_library=False)
    assert "without optimisation" in report.reference
    assert any("differs from" in note for note in report.notes)
    assert verify(tmp_path / "m").agrees  # golden vectors and their digest

    monkeypatch.setattr(Opinions, "ask", lambda *a: {"y": honest(*a)["y"] * np.float32(1.01)})
    with pytest.raises(VerificationError, match="output y does not agree"):
        compile_to(proto, tmp_path / "other", runner=False, static_library=False)


def test_products_of_bytes_do_not_saturate_in_the_reference() -> None:
    """On CPUs without VNNI ONNX Runtime adds pairs of products in 16 bits, if one lets it."""
    codes = np.full((64, 8), 127, np.int8)
    exact = model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["y"], to=FLOAT),
        ],
        {"w": codes},
        size=64,
    )
    reference = OnnxReference(exact, exact.SerializeToString())
    ones = np.ones((1, 64), np.float32)
    found = reference.run({"x": ones})["y"]
    np.testing.assert_array_equal(found, np.full((1, 8), 64 * 255 * 127, np.float32))


def test_the_evaluator_knows_old_versions_of_quantisation() -> None:
    old = model(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        {"scale": np.float32(0.5), "zero": np.uint8(3)},
    )
    found = Opinions(old.SerializeToString(), 1).ask(
        EVALUATOR, {"x": np.float32([[0, 1, 2, 9]])}, 30
    )
    assert not isinstance(found, str), found
    np.testing.assert_array_equal(found["y"], [[0, 1, 2, 9]])
