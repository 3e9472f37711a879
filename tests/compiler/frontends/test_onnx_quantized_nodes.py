"""The node tests of the onnx package for quantised operators."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.backend.test.case import node as node_cases

from tests.compiler.frontends.small_models import run
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx

_MODULES = (
    "convinteger",
    "dequantizelinear",
    "dynamicquantizelinear",
    "matmulinteger",
    "qlinearconv",
    "qlinearmatmul",
    "quantizelinear",
)
_NARROW = {
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("INT2", "INT4", "UINT2", "UINT4", "FLOAT4", "FLOAT8"))
}


def _cases() -> list[Any]:
    for name in _MODULES:
        importlib.import_module(f"{node_cases.__name__}.{name}")
    operators = {name.replace("_", "") for name in _MODULES}
    return [
        case
        for case in node_cases._NodeTestCases
        if case.model is not None
        and not case.name.endswith("_expanded")
        and any(n.op_type.lower() in operators for n in case.model.graph.node)
    ]


def _with_constants(case: Any) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The model with inputs of few bits as constants, which is how models have them."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.input[:]
    arrays = []
    for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=True):
        if value.type.tensor_type.elem_type in _NARROW:
            tensor = array
            if not isinstance(array, TensorProto):
                tensor = onnx.numpy_helper.from_array(np.asarray(array), value.name)
            model.graph.initializer.add().CopyFrom(tensor)
        else:
            model.graph.input.append(value)
            arrays.append(np.asarray(array))
    return model, arrays


def _array(expected: Any) -> np.ndarray:
    if isinstance(expected, TensorProto):
        return onnx.numpy_helper.to_array(expected)
    return np.asarray(expected)


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_node(case: Any) -> None:
    model, inputs = _with_constants(case)
    if any(v.type.tensor_type.elem_type in _NARROW for v in model.graph.output):
        with pytest.raises(ModelError, match="cannot be returned"):
            import_onnx(model)
        return
    results = run(import_onnx(model), *inputs)
    for actual, given in zip(results, case.data_sets[0][1], strict=True):
        expected = _array(given)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(
            actual.astype(np.float64), expected.astype(np.float64), case.rtol, case.atol
        )
