"""Integers divided by 0 and by -1 give what numpy says, and end no program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import tinsmith

DTYPES = ("int8", "int32", "int64", "uint8", "uint32")


def operands(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Dividends (10,) and divisors (10,)."""
    limits = np.iinfo(dtype)
    signed = limits.min < 0
    a = [7, 7, 0, 5, limits.max, limits.min, limits.min, limits.min, 3, limits.max]
    b = [0, 2, 0, 3, 0, 0, -1 if signed else 1, 2, limits.max, limits.max]
    if signed:
        a[1], b[3] = -7, -3
    return np.array(a, dtype), np.array(b, dtype)


def model(constant: bool) -> onnx.ModelProto:
    """Div, Mod and fmod of two inputs of each dtype, or by a constant divisor."""
    nodes, inputs, outputs, weights = [], [], [], []
    for dtype in DTYPES:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        a, b = f"a_{dtype}", f"b_{dtype}"
        inputs.append(helper.make_tensor_value_info(a, kind, [10]))
        if constant:
            weights.append(numpy_helper.from_array(operands(dtype)[1], b))
        else:
            inputs.append(helper.make_tensor_value_info(b, kind, [10]))
        for name, op, options in (
            ("div", "Div", {}),
            ("mod", "Mod", {}),
            ("fmod", "Mod", {"fmod": 1}),
        ):
            nodes.append(helper.make_node(op, [a, b], [f"{name}_{dtype}"], **options))
            outputs.append(helper.make_tensor_value_info(f"{name}_{dtype}", kind, [10]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(folder: Path, constant: bool) -> None:
    report = tinsmith.compile_to(model(constant), folder, runner=False, static_library=False)
    arrays = {}
    for dtype in DTYPES:
        a, b = operands(dtype)
        arrays |= {f"a_{dtype}": a} if constant else {f"a_{dtype}": a, f"b_{dtype}": b}
    with tinsmith.load(report.path) as module:
        found = module(arrays)
        for dtype in DTYPES:
            a, b = operands(dtype)
            with np.errstate(all="ignore"):
                toward_zero = np.where(b == 0, 0, (a - np.fmod(a, b)) // b).astype(dtype)
                np.testing.assert_array_equal(found[f"div_{dtype}"], toward_zero)
                np.testing.assert_array_equal(found[f"mod_{dtype}"], np.mod(a, b))
                np.testing.assert_array_equal(found[f"fmod_{dtype}"], np.fmod(a, b))


def test_by_inputs(tmp_path: Path) -> None:
    check(tmp_path / "m", constant=False)


def test_by_constants(tmp_path: Path) -> None:
    check(tmp_path / "m", constant=True)
