"""The operators that the VM form evaluates in numpy, against ONNX Runtime node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tinsmith.compiler.module.vm_operators import OPERATORS

_RANDOM = np.random.default_rng(0)
_OPSET = 18


def _agrees(operator: str, inputs: list[np.ndarray | None], outputs: int, **attributes: Any) -> int:
    """Compare all outputs; returns the size of the first."""
    runtime = pytest.importorskip("onnxruntime")
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"o{k}" for k in range(outputs)], **attributes)
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, inputs, strict=True)
            if array is not None
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString())
    given = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    expected = session.run(None, given)
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    run = OPERATORS[operator](values, outputs, _OPSET)
    assert run is not None
    actual = list(run(inputs))[:outputs]
    for result, wanted in zip(actual, expected, strict=True):
        assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
    return int(actual[0].size)


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize(
    ("most", "overlap", "least"),
    [(3, 0.5, 0.2), (100, 0.0, None), (0, 0.5, 0.2), (None, None, None), (7, 1.0, 0.99)],
)
def test_non_max_suppression(centred, most, overlap, least) -> None:
    boxes = _RANDOM.random((2, 150, 4)).astype("float32")
    boxes[0, 5] = boxes[0, 6]
    boxes[1, 7] = 0
    # Many equal scores: which of two boxes comes first is prescribed, too.
    scores = np.round(_RANDOM.random((2, 3, 150)), 1).astype("float32")
    limits = [
        None if most is None else np.array([most]),
        None if overlap is None else np.array([overlap], "float32"),
        None if least is None else np.array([least], "float32"),
    ]
    while limits and limits[-1] is None:
        limits.pop()
    size = _agrees("NonMaxSuppression", [boxes, scores, *limits], 1, center_point_box=centred)
    assert bool(size) == bool(most)


@pytest.mark.parametrize("is_sorted", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [((30,), None), ((4, 5), None), ((12, 2), 0),
                                             ((2, 12), 1), ((0,), None)])  # fmt: skip
def test_unique(shape, axis, is_sorted) -> None:
    values = _RANDOM.integers(-2, 3, shape).astype("float32")
    more = {} if axis is None else {"axis": axis}
    _agrees("Unique", [values], 4, sorted=is_sorted, **more)


@pytest.mark.parametrize("shape", [(3, 4), (5,), (0, 3), (2, 3, 2)])
def test_non_zero(shape) -> None:
    _agrees("NonZero", [_RANDOM.integers(0, 2, shape)], 1)


@pytest.mark.parametrize(("axis", "length"), [(None, 9), (0, 3), (1, 2), (-1, 4)])
def test_compress(axis, length) -> None:
    more = {} if axis is None else {"axis": axis}
    values = _RANDOM.standard_normal((3, 4)).astype("float32")
    _agrees("Compress", [values, _RANDOM.integers(0, 2, length).astype(bool)], 1, **more)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_resize(mode, coordinates) -> None:
    image = _RANDOM.standard_normal((1, 2, 7, 9)).astype("float32")
    more = {"mode": mode, "coordinate_transformation_mode": coordinates}
    _agrees("Resize", [image, None, None, np.array([1, 2, 12, 5])], 1, **more)
    _agrees("Resize", [image, None, np.array([1, 1, 2, 3], "float32")], 1, **more)
