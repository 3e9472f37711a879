"""Rearrangements and sequences that the VM form evaluates, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.module.vm_functions import evaluator_of

_X = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
_EMPTY = np.zeros((0, 4), "float32")


def _whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_CASES: dict[str, list[tuple[np.ndarray, ...]]] = {
    "Slice(a, b, c, d, e)": [
        (_X, _whole(1, 0), _whole(3, 4), _whole(0, 1), _whole(1, 2)),
        (_X, _whole(-1, -1), _whole(-100, -3), _whole(0, -1), _whole(-1, -2)),
        (_X, _whole(2, 9), _whole(1, 99), _whole(0, 1), _whole(1, 1)),
        (_EMPTY, _whole(-1), _whole(-9), _whole(0), _whole(-1)),
    ],
    "Slice(a, b, c)": [(_X, _whole(0), _whole(2**62))],
    "Reshape(a, b)": [(_X, _whole(2, -1)), (_X, _whole(0, 2, 2)), (_EMPTY, _whole(0, 2, 2))],
    "Expand(a, b)": [(_X, _whole(2, 1, 4)), (_X[:1], _whole(3, 1)), (_X[0], _whole())],
    "Tile(a, b)": [(_X, _whole(2, 0)), (_X, _whole(1, 3))],
    "Squeeze(a)": [(_X[:1],)],
    "Unsqueeze(a, b)": [(_X, _whole(0, -1))],
    "Transpose<perm=[1,0]>(a)": [(_X,)],
    "Concat<axis=-1>(a, b)": [(_X, _X)],
    "Shape<start=-1>(a)": [(_X,)],
    "Size(a)": [(_X,), (_EMPTY,)],
    "Cast<to=7>(a)": [(_X,)],
    "Range(a, b, c)": [
        tuple(np.array(v, "float32") for v in (0, 9, 0.1)),
        tuple(np.array(v, "int64") for v in (5, -4, -2)),
        tuple(np.array(v, "int64") for v in (5, 5, 1)),
    ],
    "ConstantOfShape<value=int64[1]{7}>(a)": [(_whole(2, 3),), (_whole(),), (_whole(0),)],
    "Pad(a, b, c)": [
        (_X, _whole(1, 0, 0, 2), np.array(7, "float32")),
        (_X, _whole(-1, 2, 0, -3), np.array(7, "float32")),
    ],
    "ScatterElements<axis=1>(a, b, c)": [(_X, _whole(0, -1).reshape(1, 2), _X[:1, :2])],
    "GatherElements<axis=1>(a, b)": [(_X, _whole(0, -1).reshape(1, 2))],
    "GatherND(a, b)": [(_X, _whole(0, 1, 2, -1).reshape(2, 2)), (_X, _whole(2).reshape(1, 1))],
    "ScatterND(a, b, c)": [(_X, _whole(0, 1, 2, -1).reshape(2, 2), _X[0, :2])],
    "SequenceAt(s, c)": [(_X, _EMPTY, np.array(k)) for k in (0, 1, -1)],
    "SequenceInsert(s, a, c)": [(_X, _EMPTY, np.array(k)) for k in (0, 1, 2, -1)],
    "SequenceErase(s, c)": [(_X, _EMPTY, np.array(k)) for k in (0, -1)],
    "SequenceLength(s)": [(_X, _EMPTY)],
    "ConcatFromSequence<axis=0>(s)": [(_X, _EMPTY)],
    "SplitToSequence<axis=1>(a, b)": [(_X, np.array(3)), (_X, _whole(3, 0, 1))],
    "SplitToSequence<axis=0, keepdims=0>(a)": [(_X,)],
}
_NAMES = "abcde"


def _type(array: np.ndarray) -> str:
    kind = {"float32": "float", "int64": "int64"}[str(array.dtype)]
    return f"{kind}[{','.join(map(str, array.shape))}]" if array.ndim else kind


def _models(call: str, arrays: tuple[np.ndarray, ...]) -> tuple[Any, Any]:
    """A model of the node after one that makes a sequence, and one of the node alone."""
    header = '<ir_version: 8, opset_import: ["" : 17]> g '
    given = ", ".join(f"{_type(a)} {n}" for n, a in zip(_NAMES, arrays, strict=False))
    sequence = "s = SequenceConstruct(a, b) " if "(s" in call else ""
    whole = parser.parse_model(f"{header}({given}) => (y) {{ {sequence} y = {call} }}")
    alone = parser.parse_model(f"{header}({given}) => (y) {{ y = {call} }}")
    if sequence:
        del alone.graph.input[:]
        for name in alone.graph.node[0].input:
            alone.graph.input.add(name=name)
    return whole, alone


@pytest.mark.parametrize("call", _CASES)
def test_as_onnx_runtime(call: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    for arrays in _CASES[call]:
        whole, alone = _models(call, arrays)
        given = dict(zip(_NAMES, arrays, strict=False))
        expected = runtime.InferenceSession(whole.SerializeToString()).run(None, given)[0]
        values: dict[str, Any] = {**given, "s": list(arrays[:2])}
        inputs = [values[value.name] for value in alone.graph.input]
        actual = evaluator_of(alone)(inputs)[0]
        if not isinstance(expected, list):
            expected, actual = [expected], [actual]
        assert len(actual) == len(expected)
        for result, wanted in zip(actual, expected, strict=True):
            result = np.asarray(result)
            assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize(
    ("call", "arrays", "message"),
    [
        ("SequenceAt(s, c)", (_X, _X, np.array(2)), "position 2 of a sequence of 2"),
        ("SplitToSequence<axis=1>(a, b)", (_X, _whole(3, 3)), r"parts of \[3, 3\]"),
        ("GatherND(a, b)", (_X, _whole(3).reshape(1, 1)), "out of bounds"),
        ("Reshape(a, b)", (_X, _whole(5, -1)), "reshape"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_node(call, arrays, message) -> None:
    _, alone = _models(call, arrays)
    values: dict[str, Any] = {**dict(zip(_NAMES, arrays, strict=False)), "s": list(arrays[:2])}
    inputs = [values[value.name] for value in alone.graph.input]
    with pytest.raises(
        TinsmithError, match=rf"node 'y' \({call.split('(')[0].split('<')[0]}\).*{message}"
    ):
        evaluator_of(alone)(inputs)
