"""DynamicQuantizeLSTM against its formulas in numpy: in TVM's pipeline and in a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import tinsmith
from tests.compiler.frontends.small_models import random, run
from tinsmith.compiler.frontends.onnx.model import import_onnx

Arrays = dict[str, np.ndarray]


def _operands(
    steps: int, batch: int, features: int, hidden: int, directions: int, zero: int, **given: Any
) -> Arrays:
    """Constants and inputs of a node; `zero` is the zero point of its uint8 codes."""
    generator = np.random.default_rng(hidden)
    state, columns = (directions, batch, hidden), (directions, 4 * hidden)

    def scale(terms: int) -> np.ndarray:
        return ((1 + generator.random(columns)) * 0.01 / np.sqrt(terms)).astype(np.float32)

    def codes(rows: int) -> np.ndarray:
        return generator.integers(0, 256, (directions, rows, 4 * hidden)).astype(np.uint8)

    return {
        "x": random((steps, batch, features), hidden),
        "W": codes(features),
        "R": codes(hidden),
        "B": random((directions, 8 * hidden), 1) * np.float32(0.1),
        "h": random(state, 2) * np.float32(0.3),
        "c": random(state, 3),
        "P": random((directions, 3 * hidden), 4) * np.float32(0.1),
        "Ws": scale(features),
        "Wz": np.full(columns, zero, np.uint8),
        "Rs": scale(hidden),
        "Rz": np.full(columns, zero, np.uint8),
        **given,
    }


# Blocks of 2, 1 and 16 units; codes in two, three and one parts; the large one is shared out.
CASES: dict[str, Arrays] = {
    "small": _operands(3, 2, 5, 6, 2, 128, lengths=np.array([2, 3], np.int32)),
    "odd": _operands(2, 1, 7, 13, 1, 255),
    "large": _operands(2, 2, 9, 368, 2, 120, lengths=np.array([2, 1], np.int32)),
}
CASES["large"]["R"] = np.clip(CASES["large"]["R"], 1, 240)


def _model(cases: dict[str, Arrays]) -> onnx.ModelProto:
    nodes, inputs, outputs, constants = [], [], [], []
    for case, arrays in cases.items():
        order = ["x", "W", "R", "B", "lengths", "h", "c", "P", "Ws", "Wz", "Rs", "Rz"]
        names = [f"{case}_{name}" if name in arrays else "" for name in order]
        results = [f"{case}_{name}" for name in ("sequence", "hidden", "cell")]
        directions, hidden = arrays["R"].shape[:2]
        nodes.append(
            helper.make_node(
                "DynamicQuantizeLSTM", names, results, domain="com.microsoft",
                hidden_size=hidden, direction=("forward", "bidirectional")[directions - 1],
            )
        )  # fmt: skip
        outputs += results
        for name, array in arrays.items():
            if name == "x":
                inputs.append(helper.make_tensor_value_info(f"{case}_x", 1, array.shape))
            else:
                constants.append(onnx.numpy_helper.from_array(array, f"{case}_{name}"))
    described = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph(nodes, "quantised", inputs, described, constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _quantised(values: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Codes less their zero point, and their scale."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = (high - low) / np.float32(255) if high > low else np.float32(1)
    zero = np.rint(np.clip(-low / scale, np.float32(0), np.float32(255)))
    return np.clip(np.rint(values / scale), -zero, 255 - zero).astype(np.int64), scale


def _product(values: np.ndarray, arrays: Arrays, weights: str, d: int) -> np.ndarray:
    codes, scale = _quantised(values)
    centred = arrays[weights][d].astype(np.int64) - arrays[f"{weights}z"][d].astype(np.int64)
    return (codes @ centred).astype(np.float32) * (scale * arrays[f"{weights}s"][d])


def _expected(arrays: Arrays) -> list[np.ndarray]:
    steps, batch, features = arrays["x"].shape
    directions, hidden = arrays["R"].shape[:2]
    sequence = np.zeros((steps, directions, batch, hidden), np.float32)
    finals = arrays["h"].copy(), arrays["c"].copy()
    lengths = arrays.get("lengths", np.full(batch, steps))

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)

    for d in range(directions):
        projected = _product(arrays["x"].reshape(-1, features), arrays, "W", d)
        halves = arrays["B"][d].reshape(2, -1)
        projected = (projected + halves.sum(0)).reshape(steps, batch, -1)
        p, q, r = arrays["P"][d].reshape(3, -1)
        for entry in range(batch):
            h, c = (final[d, entry] for final in finals)
            times = range(lengths[entry])
            for t in reversed(times) if d else times:
                i, o, f, g = np.split(_product(h, arrays, "R", d) + projected[t, entry], 4)
                i, f = sigmoid(i + p * c), sigmoid(f + r * c)
                c = f * c + i * np.tanh(g)
                h = sigmoid(o + q * c) * np.tanh(c)
                sequence[t, d, entry] = h
            finals[0][d, entry], finals[1][d, entry] = h, c
    return [sequence, *finals]


def _first_steps(arrays: Arrays, sequence: np.ndarray) -> np.ndarray:
    """The hidden state after one step of each sequence in each direction."""
    steps, directions, batch, _ = sequence.shape
    lengths = arrays.get("lengths", np.full(batch, steps))
    places = [((lengths[b] - 1) * d, d, b) for d in range(directions) for b in range(batch)]
    return np.stack([sequence[place] for place in places])


def _inputs(*cases: str) -> list[np.ndarray]:
    return [CASES[case]["x"] for case in cases]


def _check(results: list[np.ndarray], *cases: str) -> None:
    for number, case in enumerate(cases):
        arrays = CASES[case]
        found, wanted = results[3 * number : 3 * number + 3], _expected(arrays)
        # The first step quantises what was given; a later one what elementary functions have
        # made, whose last bit may decide between two codes.
        first = _first_steps(arrays, wanted[0])
        exact = _first_steps(arrays, found[0])
        np.testing.assert_allclose(exact, first, atol=3e-6, err_msg=case)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=case)


def test_formulas_as_any_machine_computes_them() -> None:
    cases = "small", "odd"
    imported = import_onnx(_model({case: CASES[case] for case in cases}))
    _check(run(imported, *_inputs(*cases)), *cases)


COMPILED = "small", "large"


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "module"
    model = _model({case: CASES[case] for case in COMPILED})
    tinsmith.compile_to(
        model, folder, static_library=False, runner=False, golden=False, tuned=False
    )
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_formulas_in_a_module(threads: int, module_folder: Path) -> None:
    with tinsmith.load(module_folder, threads) as module:
        _check(module.run(_inputs(*COMPILED)), *COMPILED)
