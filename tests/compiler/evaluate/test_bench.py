"""Peers that cannot take a model with its shapes and constants bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tinsmith.compiler.evaluate.bench import _Contestant, _second_try
from tinsmith.compiler.frontends.frontend import ForPeers
from tinsmith.compiler.frontends.onnx.shapes import bind_inputs


def _product_by_rate() -> onnx.ModelProto:
    """`x` by one of two matrices, which `rate` chooses; 4 columns suit the first one alone."""
    branches = {}
    for name, columns in (("then_branch", 4), ("else_branch", 8)):
        matrix = onnx.numpy_helper.from_array(np.ones((columns, 3), np.float32), f"m{columns}")
        product = helper.make_node("MatMul", ["x", matrix.name], [f"y{columns}"])
        result = helper.make_tensor_value_info(f"y{columns}", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([product], name, [], [result], [matrix])
    graph = helper.make_graph(
        [
            helper.make_node("Equal", ["rate", "wanted"], ["is_wanted"]),
            helper.make_node("If", ["is_wanted"], ["y"], **branches),
        ],
        "rates",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"]),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array(16000), "wanted")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_peer_that_refuses_the_bound_model_gets_the_file_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    proto = _product_by_rate()
    bound, _, _ = bind_inputs(proto, {"x": (1, 4)}, {"rate": np.array(16000)}, "rates")
    onnx.save(bound, tmp_path / "bound.onnx")
    inputs = {"x": np.ones((1, 4), np.float32)}
    np.savez(tmp_path / "inputs.npz", **inputs)
    peer = _Contestant(
        "ONNX Runtime", "onnxruntime", tmp_path / "bound.onnx", tmp_path / "inputs.npz", 1
    )
    assert peer.error is not None
    model = ForPeers(b"", proto.SerializeToString, {"rate": np.array(16000)})
    second = _second_try(peer, model, inputs, tmp_path)
    try:
        assert second.error is None
        assert second.version.endswith("(nothing bound)")
        second.burst(1)
        assert len(second.milliseconds) == 1
    finally:
        second.close()
