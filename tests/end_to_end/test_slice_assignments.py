"""`x[:, i:j] = value` with positions given at run time: kernels where that can be, right anyway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import tinsmith
from tinsmith.compiler.errors import ModelError

# As Paddle's exporter writes it: along the middle axis, with a negative axis and along the last.
_ASSIGNED = """
  {y}_limit = Gather<axis=0>(sizes, {axis})
  {y}_end = Min({y}_limit, end)
  {y}_piece = Slice(x, begin, {y}_end, {named}, one)
  {y}_size = Shape({y}_piece)
  {y}_updates = Expand({value}, {y}_size)
  {y}_from = Squeeze(begin)
  {y}_to = Squeeze({y}_end)
  {y}_step = Squeeze(one)
  {y}_range = Range({y}_from, {y}_to, {y}_step)
  {y}_line = Reshape({y}_range, {line})
  {y}_before = Slice({y}_size, zero, {axis}, zero)
  {y}_next = Add({axis}, one)
  {y}_after = Slice({y}_size, {y}_next, three, zero)
  {y}_repeats = Concat<axis=0>({y}_before, one, {y}_after)
  {y}_places = Tile({y}_line, {y}_repeats)
  {y} = ScatterElements<axis={position}>(x, {y}_places, {y}_updates)
"""
_KINDS = {
    "middle": {"axis": "one", "named": "one", "line": "in_middle", "position": 1, "value": "v"},
    "negative": {"axis": "one", "named": "less_two", "line": "in_middle", "position": -2,
                 "value": "number"},
    "last": {"axis": "two", "named": "two", "line": "at_end", "position": 2, "value": "number"},
}  # fmt: skip


def _model(*kinds: str) -> onnx.ModelProto:
    body = "".join(_ASSIGNED.format(y=kind, **_KINDS[kind]) for kind in kinds)
    outputs = ", ".join(f"float[2,5,3] {kind}" for kind in kinds)
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,5,3] x, float[2,1,3] v, int64[1] begin, int64[1] end) => ({outputs})
        <float number={{7}}, int64[1] one={{1}}, int64[1] two={{2}}, int64[1] less_two={{-2}},
         int64[1] zero={{0}}, int64[1] three={{3}}, int64[3] in_middle={{1,-1,1}},
         int64[3] at_end={{1,1,-1}}>
        {{ sizes = Shape(x) {body} }}"""
    )


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tinsmith.Module:
    folder = tmp_path_factory.mktemp("assigned")
    onnx.save(_model(*_KINDS), folder / "m.onnx")
    return tinsmith.compile(
        folder / "m.onnx", constants={}, output=folder / "m", runner=False, static_library=False
    )


def _expected(x: np.ndarray, v: np.ndarray, begin: int, end: int) -> list[np.ndarray]:
    middle, negative, last = x.copy(), x.copy(), x.copy()
    middle[:, begin:end] = v
    negative[:, begin:end] = 7
    last[:, :, begin:end] = 7
    return [middle, negative, last]


def test_is_a_kernel(module: tinsmith.Module) -> None:
    assert module.manifest.form == "self-contained"
    assert not any("evaluated" in note for note in module.manifest.notes)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 1), (2, 3), (1, 3), (2, 2), (4, 5), (3, 99), (7, 8), (-2, -1)]
)
def test_every_position(begin: int, end: int, module: tinsmith.Module) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 5, 3)).astype("float32")
    v = random.standard_normal((2, 1, 3)).astype("float32")
    found = module(x=x, v=v, begin=np.array([begin]), end=np.array([end]))
    for name, wanted in zip(_KINDS, _expected(x, v, begin, end), strict=True):
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def test_values_that_differ_along_the_axis_are_left_alone(tmp_path: Path) -> None:
    model = _model("middle")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(model, tmp_path / "m.onnx")
    module = tinsmith.compile(
        tmp_path / "m.onnx", constants={"begin": [1], "end": [3]}, output=tmp_path / "m",
        runner=False, static_library=False,
    )  # fmt: skip
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 5, 3)).astype("float32")
    v = random.standard_normal((2, 2, 3)).astype("float32")
    np.testing.assert_array_equal(
        module(x=x, v=v)["middle"], np.concatenate([x[:, :1], v, x[:, 3:]], 1)
    )


@pytest.mark.parametrize("left_out", ["Range", "Slice", "Expand", "Tile", "ScatterElements"])
def test_inputs_that_are_missing(left_out: str, tmp_path: Path) -> None:
    model = _model("middle")
    node = next(n for n in model.graph.node if n.op_type == left_out)
    del node.input[1:]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError):
        tinsmith.compile(tmp_path / "m.onnx", output=tmp_path / "m")
