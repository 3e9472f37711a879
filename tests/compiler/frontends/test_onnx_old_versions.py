"""Models of operator sets before the seventh compute what they did then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import model, random, run, value
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.frontends.onnx.old_versions import modernized

X = random((2, 3, 4, 5), seed=3)
ROW, CHANNEL, PLANE = random((5,)), random((3,)), random((3, 4))


def _model(nodes: list[onnx.NodeProto], outputs: list[str], opset: int) -> onnx.ModelProto:
    constants = {
        "row": ROW,
        "channel": CHANNEL,
        "plane": PLANE,
        "one": np.float32(2.5),
        "times": np.array([2], np.float32),
        "along": np.array([1], np.float32),
        "weight": random((5, 7)),
        "bias": random((7,)),
        "statistics": np.abs(CHANNEL) + 1,
    }
    return model(nodes, [value("x", X.shape)], outputs, constants, opset=opset)


def test_attributes_of_old_operators_keep_their_meaning() -> None:
    node = helper.make_node
    cases = {
        "channels": (node("Add", ["x", "channel"], ["channels"], broadcast=1, axis=1),
                     X + CHANNEL[:, None, None]),
        "negative": (node("Mul", ["x", "channel"], ["negative"], broadcast=1, axis=-3),
                     X * CHANNEL[:, None, None]),
        "planes": (node("Sub", ["x", "plane"], ["planes"], broadcast=1, axis=1),
                   X - PLANE[:, :, None]),
        "rows": (node("Add", ["x", "row"], ["rows"], broadcast=1), X + ROW),
        "scalar": (node("Div", ["x", "one"], ["scalar"], broadcast=1), X / np.float32(2.5)),
        "relu": (node("Relu", ["x"], ["relu"], consumed_inputs=[0]), np.maximum(X, 0)),
        "kept": (node("Dropout", ["x"], ["kept"], is_test=1), X),
        "flat": (node("Reshape", ["x"], ["flat"], shape=[2, -1]), X.reshape(2, -1)),
        "padded": (node("Pad", ["x"], ["padded"], paddings=[0, 0, 1, 0, 0, 0, 0, 2], value=3.0),
                   np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=3)),
        "large": (node("Upsample", ["x"], ["large"], height_scale=2.0, width_scale=3.0),
                  X.repeat(2, 2).repeat(3, 3)),
        "twice": (node("Tile", ["x", "times", "along"], ["twice"]), np.tile(X, (1, 2, 1, 1))),
        "joined": (node("Concat", ["x", "x"], ["joined"]), np.concatenate([X, X], 1)),
        "whole": (node("Cast", ["x"], ["whole"], to="INT32"), X.astype(np.int32)),
        "prelu": (node("PRelu", ["x", "channel"], ["prelu"]),
                  np.where(X < 0, X * CHANNEL[:, None, None], X)),
        "normal": (
            node("BatchNormalization", ["x", "channel", "channel", "channel", "statistics"],
                 ["normal"], consumed_inputs=[0, 0, 0, 1, 1], is_test=1, epsilon=1e-5),
            (X - CHANNEL[:, None, None])
            / np.sqrt(np.abs(CHANNEL) + 1 + 1e-5)[:, None, None] * CHANNEL[:, None, None]
            + CHANNEL[:, None, None],
        ),
        "gemm": (node("Gemm", ["r2", "weight", "bias"], ["gemm"], broadcast=1),
                 X.reshape(-1, 5) @ random((5, 7)) + random((7,))),
    }  # fmt: skip
    nodes = [node("Reshape", ["x"], ["r2"], shape=[-1, 5]), *(case[0] for case in cases.values())]
    proto = _model(nodes, list(cases), opset=1)
    results = run(import_onnx(proto), X)
    for (name, (_, expected)), result in zip(cases.items(), results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_later_models_stay_as_they_are() -> None:
    proto = _model([helper.make_node("Relu", ["x"], ["y"])], ["y"], opset=7)
    assert modernized(proto, "m") is proto


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Cast", ["x"], ["y"], to="QUATERNION"), "no dtype 'QUATERNION'"),
        (helper.make_node("Add", ["x", "plane"], ["y"], broadcast=1, axis=3), "leaves no room"),
        (helper.make_node("Tile", ["x", "x", "along"], ["y"]), "depends on data"),
        (
            helper.make_node("BatchNormalization", ["x"] + ["plane"] * 4, ["y"], spatial=0),
            "spatial=0",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        import_onnx(_model([node], ["y"], opset=5))
    assert "'y'" in str(caught.value) and "\n" not in str(caught.value)


def test_branches_are_rewritten_too() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"], consumed_inputs=[0])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node(
            "Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))
        ),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    (result,) = run(import_onnx(_model(nodes, ["y"], opset=5)), X)
    np.testing.assert_array_equal(result, np.maximum(X, 0))
