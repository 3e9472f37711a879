"""sort, argsort and top-k by the module's own runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_networks import lowered
from tvm.relax import op

import tinsmith
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.writer import write_module

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")


def _values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Few distinct values, so that ties are frequent."""
    return (np.random.default_rng(1).integers(-7, 8, shape) % 100).astype(dtype)


def _run(tmp_path: Path, build, values: np.ndarray, outputs: int = 1) -> list[np.ndarray]:
    model = lowered(build, ((values.shape, str(values.dtype)),), outputs)
    written = write_module(model, tmp_path / "m", forms=("shared",))
    assert written.manifest.form == "self-contained"
    with load(written.path) as module:
        return module.run([values])


def _stable_order(values: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    keys = values.astype(np.float64)
    return np.argsort(-keys if descending else keys, axis=axis, kind="stable")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
def test_argsort_is_stable(dtype: str, descending: bool, tmp_path: Path) -> None:
    values = _values(dtype, (5, 77))
    (order,) = _run(tmp_path, lambda x: op.argsort(x, axis=-1, descending=descending), values)
    np.testing.assert_array_equal(order, _stable_order(values, -1, descending))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sort_along_any_axis(axis: int, tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((6, 33, 5)).astype("float32")
    (result,) = _run(tmp_path, lambda x: op.sort(x, axis=axis), values)
    np.testing.assert_array_equal(result, np.sort(values, axis=axis))


@pytest.mark.parametrize("largest", [False, True])
def test_top_k(largest: bool, tmp_path: Path) -> None:
    values = _values("float32", (9, 50, 4))
    found, order = _run(
        tmp_path,
        lambda x: op.topk(x, k=6, axis=1, ret_type="both", largest=largest, dtype="int64"),
        values,
        outputs=2,
    )
    expected = _stable_order(values, 1, largest)[:, :6]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, 1))
    assert order.dtype == np.int64


def test_nan_does_no_harm(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((3, 40)).astype("float32")
    values[:, ::7] = np.nan
    (order,) = _run(tmp_path, lambda x: op.argsort(x, axis=1), values)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(40), (3, 40)))


@pytest.mark.parametrize(
    ("operator", "parameter", "attributes", "outputs"),
    [
        ("TopK", [3], {"axis": 1, "largest": 0}, 2),
        ("TopK", [2], {"axis": -1}, 2),
        ("CumSum", 0, {}, 1),
        ("CumSum", 2, {"exclusive": 1, "reverse": 1}, 1),
        ("CumSum", -2, {"reverse": 1}, 1),
    ],
)
def test_onnx_models_that_sort_or_scan(
    operator: str,
    parameter: object,
    attributes: dict[str, int],
    outputs: int,
    tmp_path: Path,
) -> None:
    names = ["y", "i"][:outputs]
    types = [TensorProto.FLOAT, TensorProto.INT64]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "p"], names, **attributes)],
        "scan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 7, 9])],
        [
            helper.make_tensor_value_info(n, t, [None] * 3)
            for n, t in zip(names, types, strict=False)
        ],
        [numpy_helper.from_array(np.array(parameter, np.int64), "p")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "scan.onnx")
    module = tinsmith.compile(tmp_path / "scan.onnx", output=tmp_path / "m")
    assert module.manifest.form == "self-contained"
    x = np.random.default_rng(3).standard_normal((5, 7, 9)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    with module:
        for found, wanted in zip(module.run([x]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
