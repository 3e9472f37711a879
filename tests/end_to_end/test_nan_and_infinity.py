"""NaN, infinities, zeros of both signs and denormals, in every kind of kernel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.reference
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from tinsmith.compiler.api import compile_to
from tinsmith.compiler.module.loader import load

SPECIAL = [
    np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -1e-40, 1.0, -1.0, 0.5, 2.5, -2.5, 6.0, 7.0, -7.0,
    60.0, -60.0, 88.0, -100.0, 1e-3, 4.0, -4.0,
]  # fmt: skip
# 2 vectors of 16 and a rest, the row after the specials with one NaN, then one of -inf only.
SHAPE = (3, 37)


class Case(NamedTuple):
    operator: str
    inputs: str
    attributes: Mapping[str, Any] = {}


def unary() -> list[Case]:
    plain = (
        "Abs Ceil Celu Elu Erf Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish "
        "Neg Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Tanh ThresholdedRelu"
    )
    cases = [Case(name, "x") for name in plain.split()]
    return [
        *cases,
        Case("Celu", "x", {"alpha": 0.5}),
        Case("Elu", "x", {"alpha": 2.0}),
        Case("Gelu", "x", {"approximate": "tanh"}),
        Case("IsInf", "x", {"detect_negative": 0}),
        Case("IsInf", "x", {"detect_positive": 0}),
        Case("ThresholdedRelu", "x", {"alpha": -0.5}),
        Case("Clip", "x low high"),
        Case("Clip", "x zero six"),
        Case("Clip", "x low"),
        Case("Clip", "x _ high"),
        Case("Max", "x zero"),
        Case("Max", "zero x"),
        Case("Min", "x six"),
        Case("PRelu", "x slope"),
        Case("Mul", "x zero"),
        Case("Pow", "x two"),
        Case("Sub", "x x"),
        Case("Cast", "x", {"to": TensorProto.BOOL}),
    ]


CASES = [
    *unary(),
    *(Case(name, "x y") for name in ("Max", "Min", "Add", "Div", "Pow")),
    *(Case(name, "x y") for name in ("Less", "GreaterOrEqual", "Equal")),
    Case("Max", "x y half"),
    Case("Min", "half y x"),
    Case("Where", "mask x y"),
    *(
        Case(f"Reduce{name}", f"{data} {axes}".strip())
        for name in ("Max", "Min", "Sum", "L2")
        for data, axes in (("x", "last"), ("x", "first"), ("y", ""), ("image", "space"))
    ),
    Case("ReduceLogSumExp", "y last"),
    *(
        Case(name, "y", {"axis": axis, "select_last_index": last})
        for name in ("ArgMax", "ArgMin")
        for axis, last in ((0, 0), (1, 0), (1, 1))
    ),
    *(Case("Softmax", data, {"axis": axis}) for data in "xy" for axis in (0, 1)),
    Case("Hardmax", "y", {"axis": 1}),
    Case("TopK", "y five", {"axis": 1}),
    Case("CumSum", "y one"),
    Case("LayerNormalization", "y gain gain"),
    Case("GlobalMaxPool", "image"),
    Case("GlobalAveragePool", "image"),
]
# Activations in the epilogues of kernels: (what computes their operand, its inputs, attributes).
ANCHORS = [
    Case("Conv", "image kernel", {"pads": [1, 1, 1, 1]}),
    Case("Conv", "image depthwise", {"group": 9}),
    Case("MatMul", "x matrix"),
]
EPILOGUES = [Case("Relu", ""), Case("Clip", " zero six"), Case("LeakyRelu", "")]
# (kernel, strides, padding) of pools: numpy's maximum, where the reference loses NaN.
POOLS = [((2, 2), (2, 2), 0), ((3, 3), (2, 2), 1), ((3, 3), (1, 1), 1)]


def arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    x[0, : len(SPECIAL)], y[0, : len(SPECIAL)] = SPECIAL, SPECIAL[::-1]
    x[1, 33], y[1, 7], y[1, 0] = np.nan, np.nan, np.inf
    x[2] = -np.inf
    image = generator.standard_normal((1, 9, 5, 6)).astype(np.float32)
    image[0, 0, 0, 0], image[0, 1], image[0, 2, 3, 3] = np.nan, -np.inf, np.inf
    image[0, 3, 4, 5], image[0, 4, :, :3], image[0, 8, 2, 2] = np.nan, -np.inf, np.nan
    constants = {
        "low": np.float32(-1), "high": np.float32(2), "zero": np.float32(0), "six": np.float32(6),
        "two": np.float32(2), "half": np.float32([0.5]), "slope": np.float32([0.25]),
        "mask": np.arange(37) % 3 == 0, "last": np.int64([1]), "first": np.int64([0]),
        "space": np.int64([2, 3]), "five": np.int64([5]), "one": np.int64(1),
        "gain": generator.standard_normal(37).astype(np.float32),
        "kernel": generator.standard_normal((5, 9, 3, 3)).astype(np.float32),
        "depthwise": generator.standard_normal((9, 1, 3, 3)).astype(np.float32),
        "matrix": generator.standard_normal((37, 11)).astype(np.float32),
    }  # fmt: skip
    return {"x": x, "y": y, "image": image}, constants


def build() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One model with an output for each case, and its inputs."""
    inputs, constants = arrays()
    nodes: list[onnx.NodeProto] = []

    def add(name: str, case: Case, inputs: str) -> str:
        outputs = [name, f"{name}.positions"] if case.operator == "TopK" else [name]
        operands = ["" if part == "_" else part for part in inputs.split()]
        nodes.append(helper.make_node(case.operator, operands, outputs, **case.attributes))
        return name

    results = [
        add(f"{i}.{c.operator} {c.inputs} {dict(c.attributes)}", c, c.inputs)
        for i, c in enumerate(CASES)
    ]
    for i, anchor in enumerate(ANCHORS):
        for j, activation in enumerate(EPILOGUES):
            source = add(f"anchor{i}{j}", anchor, anchor.inputs)
            name = f"{anchor.operator}{i}.{activation.operator}"
            results.append(add(name, activation, source + activation.inputs))
    for i, (kernel, strides, padding) in enumerate(POOLS):
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": [padding] * 4}
        results.append(add(f"pool{i}", Case("MaxPool", "image", attributes), "image"))
    graph = helper.make_graph(
        nodes,
        "special",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model), inputs


def pooled(image: np.ndarray, kernel: Any, strides: Any, padding: int) -> np.ndarray:
    widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image, widths, constant_values=-np.inf)
    windows = sliding_window_view(padded, kernel, (2, 3))
    return windows[:, :, :: strides[0], :: strides[1]].max((-2, -1))


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the module computes, and what it should, by the names of the outputs."""
    model, inputs = build()
    folder = tmp_path_factory.mktemp("special") / "m"
    report = compile_to(
        model, folder, golden=False, runner=False, static_library=False, tuned=False
    )
    with load(report.path) as module:
        found = module(inputs)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [output.name for output in model.graph.output]
        wanted = onnx.reference.ReferenceEvaluator(model).run(names, inputs)
        expected = dict(zip(names, map(np.asarray, wanted), strict=True))
        for i, pool in enumerate(POOLS):
            expected[f"pool{i}"] = pooled(inputs["image"], *pool)
    return found, expected


def names() -> list[str]:
    return [output.name for output in build()[0].graph.output]


@pytest.mark.parametrize("name", names())
def test_special_values_come_out_as_in_the_reference(name: str, results: Any) -> None:
    found, expected = results[0][name], results[1][name]
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
        return
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["Sqrt", "Log"])
def test_a_model_that_makes_nan_itself_is_proved(operator: str, tmp_path: Path) -> None:
    """Random inputs stay in the domain as far as it can be traced; no input suits a product."""
    nodes = [
        helper.make_node("MatMul", ["x", "mixed"], ["d"]),
        helper.make_node(operator, ["d"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "makes_nan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 9])],
        [helper.make_empty_tensor_value_info("y")],
        [
            numpy_helper.from_array(
                np.eye(9, dtype=np.float32) * np.float32([1, -1, 1] * 3), "mixed"
            )
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    report = compile_to(model, tmp_path / "m", runner=False, static_library=False, tuned=False)
    assert report.differences and all(difference.agrees for difference in report.differences)
    with load(report.path) as module:
        golden = module.golden()
        assert golden is not None and np.isnan(golden.outputs[0]).any()
        assert np.isfinite(golden.outputs[0]).any()
