"""LSTM, GRU and RNN against ONNX Runtime, in one step and in many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import tinsmith
from tests.compiler.frontends.small_models import model, original, random, run, value
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import ImportedModel, import_onnx

onnxruntime = pytest.importorskip("onnxruntime")

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BATCH, FEATURES, HIDDEN = 2, 5, 12


def _recurrent(
    operator: str,
    steps: int,
    direction: str = "forward",
    *,
    bias: bool = True,
    initial: bool = True,
    peepholes: bool = False,
    lengths: Sequence[int] | None = None,
    weights_as_inputs: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    directions = 2 if direction == "bidirectional" else 1
    width = GATES[operator] * HIDDEN
    generator = np.random.default_rng(7)

    def uniform(*shape: int) -> np.ndarray:
        return generator.uniform(-0.5, 0.5, shape).astype(np.float32)

    arrays = {
        "W": uniform(directions, width, FEATURES),
        "R": uniform(directions, width, HIDDEN),
    }
    if bias:
        arrays["B"] = uniform(directions, 2 * width)
    names = ["X", "W", "R", "B" if bias else "", "", ""]
    if lengths is not None:
        arrays["lengths"] = np.array(lengths, np.int32)
        names[4] = "lengths"
    states = []
    if initial:
        names[5] = "h0"
        states.append("h0")
    if operator == "LSTM":
        names.append("c0" if initial else "")
        states += ["c0"] if initial else []
        if peepholes:
            arrays["P"] = uniform(directions, 3 * HIDDEN)
            names.append("P")
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(
        operator, names, outputs, direction=direction, hidden_size=HIDDEN, **attributes
    )
    inputs = [value("X", [steps, BATCH, FEATURES])]
    inputs += [value(state, [directions, BATCH, HIDDEN]) for state in states]
    if weights_as_inputs:
        inputs += [value(name, list(array.shape)) for name, array in arrays.items()]
        arrays = {}
    return model([node], inputs, outputs, arrays, opset=14)


def _check(proto: onnx.ModelProto) -> ImportedModel:
    imported = import_onnx(proto)
    inputs = [0.5 * random(shape, seed) for seed, shape in enumerate(imported.input_shapes)]
    session = onnxruntime.InferenceSession(
        original(imported).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, dict(zip(imported.input_names, inputs, strict=True)))
    for ours, theirs in zip(run(imported, *inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    return imported


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_directions(operator: str, steps: int, direction: str) -> None:
    _check(_recurrent(operator, steps, direction))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("LSTM", {"bias": False, "initial": False}),
        ("LSTM", {"peepholes": True}),
        ("LSTM", {"clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "bias": False}),
        ("GRU", {"clip": 0.3}),
        ("GRU", {"activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.2]}),
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Elu"], "activation_alpha": [0.7]}),
    ],
)
def test_options(operator: str, options: dict[str, Any], steps: int) -> None:
    _check(_recurrent(operator, steps, **options))


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_sequences_of_different_length(operator: str) -> None:
    _check(_recurrent(operator, 5, "bidirectional", lengths=[3, 5]))


def test_weights_given_at_run_time() -> None:
    _check(_recurrent("LSTM", 3, weights_as_inputs=True))


def test_a_long_sequence_is_one_kernel_and_one_product() -> None:
    script = _check(_recurrent("LSTM", 5, "bidirectional"))
    functions = [f for f in script.module.functions.values() if "tinsmith.template" in f.attrs]
    assert [str(function.attrs["tinsmith.template"]) for function in functions] == ["recurrent"]
    assert script.module.script().count("R.matmul(") == 1


def test_steps_of_one_large_sequence_are_shared_out(tmp_path: Path) -> None:
    """In rounds of the threads; a GRU's candidate waits for its reset gates."""
    steps, features, hidden = 3, 8, 512
    generator = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return generator.uniform(-0.1, 0.1, shape).astype(np.float32)

    constants = {
        "W": weights(1, 3 * hidden, features),
        "R": weights(1, 3 * hidden, hidden),
        "V": weights(1, hidden, features),
        "S": weights(1, hidden, hidden),
    }
    nodes = [
        helper.make_node("GRU", ["X", "W", "R"], ["Y"], hidden_size=hidden),
        helper.make_node("RNN", ["X", "V", "S"], ["Z"], hidden_size=hidden, direction="reverse"),
    ]
    proto = model(nodes, [value("X", [steps, 1, features])], ["Y", "Z"], constants, opset=14)
    report = tinsmith.compile_to(
        proto, tmp_path / "module", static_library=False, runner=False, tuned=False
    )
    assert not [note for note in report.notes if "serially" in note]
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = random((steps, 1, features))
    expected = session.run(None, {"X": x})
    for threads in (1, 2):
        with tinsmith.load(report.path, threads) as module:
            for ours, theirs in zip(module.run([x]), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_step_needs_no_kernel() -> None:
    imported = _check(_recurrent("GRU", 1))
    assert len(imported.module.functions) == 1


def test_unknown_activations_are_named() -> None:
    with pytest.raises(ModelError, match="'Swirl'"):
        import_onnx(_recurrent("RNN", 2, activations=["Swirl"]))
