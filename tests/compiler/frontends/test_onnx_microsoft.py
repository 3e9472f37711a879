"""What ONNX Runtime's optimizer writes, against ONNX Runtime: one model for each family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.compiler.frontends.small_models import random, run
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx

B, S, D, N, H = 2, 5, 12, 3, 4
MASKS = {
    "lengths": np.array([3, 5], np.int32),
    "ends": np.array([4, 5, 1, 2], np.int32),
    "keys": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
    "pairs": (np.random.default_rng(0).random((B, S, S)) > 0.4).astype(np.int32),
    "long": np.array([[1] * 6 + [0, 0], [1] * 8], np.int32),
}


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Names apart by blanks; a dash is an input or output that is left out."""
    names = [[n.replace("-", "") for n in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, *names, domain="com.microsoft", **attributes)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "fused",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
            if name in used
        ],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for node in nodes
            for name in node.output
            if name
        ],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items() if name in used],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _agrees(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    tolerance: float = 1e-4,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = _model(nodes, inputs, constants)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {value.name: inputs[value.name] for value in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    results = run(import_onnx(proto), *given.values())
    for name, ours, theirs in zip(names, results, session.run(None, given), strict=True):
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_attention_with_masks_of_each_form() -> None:
    inputs = {"x": random((B, S, D)), "past": random((2, B, N, 3, H)), **MASKS}
    inputs["added"] = random((1, N, S, S))
    constants = {"w": random((D, 3 * D)) * 0.3, "b": random((3 * D,)) * 0.1}
    constants |= {"narrow": random((D, 30)) * 0.3}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("x w b", {"unidirectional": 1}),
        ("x w b lengths", {}),
        ("x w b ends", {}),
        ("x w - keys", {"scale": 0.7, "unidirectional": 1}),
        ("x w b pairs", {"mask_filter_value": -5.0}),
        ("x w b keys - added", {}),
        ("x narrow - keys", {"qkv_hidden_sizes": [12, 12, 6]}),
    ]
    nodes = [
        _node("Attention", names, f"y{i}", num_heads=N, **given)
        for i, (names, given) in enumerate(cases)
    ]
    nodes.append(_node("Attention", "x w b long past", "y present", num_heads=N))
    _agrees(nodes, inputs, constants)


def test_attention_of_queries_keys_and_values() -> None:
    inputs = {"q": random((B, S, D)), "k": random((B, 7, D)), "v": random((B, 7, 9))}
    inputs |= {"own_k": random((B, S, D), 1), "own_v": random((B, S, D), 2)}
    inputs |= {"pk": random((B, N, 3, H), 3), "pv": random((B, N, 3, H), 4), **MASKS}
    inputs |= {"kc": random((B, N, 7, H), 5), "vc": random((B, N, 7, H), 6)}
    inputs |= {"mask": np.array([[1] * 5 + [0, 0], [1] * 7], np.int32)}
    inputs |= {"added": random((B, N, S, 8), 7)}
    constants = {"b": random((36,)) * 0.1, "narrow": random((33,)) * 0.1}
    nodes = [
        _node("MultiHeadAttention", "q k v narrow mask", "y0", num_heads=N),
        _node("MultiHeadAttention", "q own_k own_v", "y1", num_heads=N, unidirectional=1),
        _node("MultiHeadAttention", "q own_k own_v b long added pk pv", "y2 k2 v2", num_heads=N),
        _node("MultiHeadAttention", "q kc vc", "y3", num_heads=N, scale=0.3),
    ]
    _agrees(nodes, inputs, constants)


def test_heads_of_queries_share_keys() -> None:
    inputs = {"q": random((1, 3, 64)), "k": random((1, 3, 32), 1), "v": random((1, 3, 32), 2)}
    inputs |= {"pk": random((1, 2, 5, 16), 3), "pv": random((1, 2, 5, 16), 4)}
    inputs |= {"given": np.array([2], np.int32)}
    constants = {"c": np.cos(random((20, 8))), "s": np.sin(random((20, 8)))}
    constants |= {"n": np.array([2], np.int32), "all": np.array(3, np.int32)}
    constants |= {"n8": np.array([7], np.int32), "all8": np.array(8, np.int32)}
    shared: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2}
    operator = "GroupQueryAttention"
    nodes = [
        _node(operator, "q k v - - given all", "y0 k0 v0", **shared),
        _node(operator, "q k v - - n all c s", "y1 k1 v1", do_rotary=1, **shared),
        _node(operator, "q k v pk pv n8 all8 c s", "y2 k2 v2", do_rotary=1, scale=0.2, **shared),
    ]
    _agrees(nodes, inputs, constants)


def test_rotary_embeddings() -> None:
    inputs = {"x3": random((B, S, 24)), "x4": random((B, 3, S, 8))}
    inputs |= {"first": np.array([4]), "each": np.arange(10).reshape(B, S) * 2}
    constants = {"c": np.cos(random((20, 4))), "s": np.sin(random((20, 4)))}
    constants |= {"c2": constants["c"][:, :2].copy(), "s2": constants["s"][:, :2].copy()}
    part = {"rotary_embedding_dim": 4, "num_heads": 3}
    nodes = [
        _node("RotaryEmbedding", "x3 first c s", "y0"),
        _node("RotaryEmbedding", "x4 each c s", "y1", interleaved=1),
        _node("RotaryEmbedding", "x3 each c2 s2", "y2", interleaved=1, **part),
        _node("RotaryEmbedding", "x4 first c2 s2", "y3", **part),
    ]
    _agrees(nodes, inputs, constants)


def test_normalisations_and_activations() -> None:
    inputs = {"x": random((B, S, 8)), "skip": random((B, S, 8), 1), "row": random((1, S, 8), 2)}
    inputs |= {
        "words": np.arange(10, dtype=np.int32).reshape(B, S) - 2 * (np.arange(10) > 8).reshape(B, S)
    }
    inputs |= {"kinds": np.array([[0, 1, 0, 1, 0]] * B), "keys": MASKS["keys"]}
    inputs = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in inputs.items()}
    constants = {name: random((8,), seed) for seed, name in enumerate(["g", "s", "b"])}
    constants |= {"ww": random((10, 8)), "wp": random((6, 8), 1), "wk": random((2, 8), 2)}
    nodes = [
        _node("SkipLayerNormalization", "x skip g s b", "y0 - - t0", epsilon=1e-3),
        _node("SkipLayerNormalization", "x row g - b", "y1"),
        _node("SkipSimplifiedLayerNormalization", "x skip g b", "y2 - - t2"),
        _node("EmbedLayerNormalization", "words kinds ww wp wk g s", "y3 -"),
        _node("BiasGelu", "x b", "y4"),
        _node("FastGelu", "x b", "y5"),
        _node("QuickGelu", "x", "y6", alpha=1.1),
        helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["y7", "i7"], epsilon=1e-3),
    ]
    _agrees(nodes, inputs, constants)


def test_fused_products() -> None:
    inputs = {"a": random((4, 8)), "b": random((5, 8), 1), "at": random((3, 2, 8), 2)}
    inputs |= {"b3": random((2, 8, 4), 3), "image": random((1, 3, 6, 6)), "z": random((1, 4, 6, 6))}
    constants = {
        "k": random((4, 3, 3, 3)),
        "kb": random((4,)),
        "w": random((8, 5)),
        "wb": random((5,)),
    }
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        _node("FusedMatMul", "a b", "y0", transB=1, alpha=0.5),
        _node("FusedMatMul", "at b3", "y1", transBatchA=1),
        _node("FusedConv", "image k kb z", "y2", activation="Relu", **window),
        _node(
            "FusedConv", "image k", "y3", activation="Clip", activation_params=[-0.5, 1.0], **window
        ),
        _node("FusedGemm", "a w wb", "y4", activation="LeakyRelu", activation_alpha=0.3),
    ]
    _agrees(nodes, inputs, constants)


def test_softmax_with_a_bias() -> None:
    """ONNX Runtime has it on other devices than CPUs."""
    x, inner, outer = random((2, 3, 4, 5)), random((2, 1, 1, 5), 1), random((1, 1, 4, 5), 2)
    nodes = [
        _node("BiasSoftmax", "x inner", "y0", axis=3, is_inner_broadcast=1),
        _node("BiasSoftmax", "x outer", "y1", axis=3, is_inner_broadcast=0),
    ]
    given = {"x": x, "inner": inner, "outer": outer}
    results = run(import_onnx(_model(nodes, given, {})), *given.values())
    for result, bias in zip(results, (inner, outer), strict=True):
        powers = np.exp(x + bias)
        np.testing.assert_allclose(result, powers / powers.sum(-1, keepdims=True), rtol=1e-4)


def test_quantised_attention_and_recurrence() -> None:
    generator = np.random.default_rng(0)
    inputs = {"x": generator.integers(0, 256, (B, S, D)).astype(np.uint8), "keys": MASKS["keys"]}
    inputs |= {"t": random((3, 1, 5))}
    constants = {
        "w": generator.integers(-127, 128, (D, 3 * D)).astype(np.int8),
        "b": random((36,)),
        "xs": np.float32(0.02),
        "ws": np.float32(0.005),
        "xz": np.uint8(120),
        "wz": np.int8(0),
        "W": generator.integers(-64, 65, (2, 5, 24)).astype(np.int8),
        "R": generator.integers(-64, 65, (2, 6, 24)).astype(np.int8),
        "B": random((2, 48)) * 0.1,
        "Ws": np.full(2, 0.01, np.float32),
        "Wz": np.zeros(2, np.int8),
        "Rs": np.full(2, 0.012, np.float32),
        "Rz": np.zeros(2, np.int8),
        "h": random((2, 1, 6)),
        "c": random((2, 1, 6), 1),
    }
    nodes = [
        _node("QAttention", "x w b xs ws keys xz wz", "y", num_heads=N),
        _node("DynamicQuantizeLSTM", "t W R B - h c - Ws Wz Rs Rz", "s sh sc", hidden_size=6,
              direction="bidirectional"),
    ]  # fmt: skip
    _agrees(nodes, inputs, constants, 1e-3)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (_node("Attention", "x w b", "y", num_heads=N, do_rotary=1), "do_rotary=1"),
        (_node("Attention", "x w b", "y", num_heads=5), "shared out among 5 heads"),
        (_node("Attention", "x w b lengths3", "y", num_heads=N), r"a mask of \[3\]"),
    ],
)
def test_what_is_not_done_is_refused(node: onnx.NodeProto, message: str) -> None:
    inputs = {"x": random((B, S, D)), "lengths3": np.zeros(3, np.int32)}
    constants = {"w": random((D, 3 * D)), "b": random((3 * D,))}
    with pytest.raises(ModelError, match=message):
        import_onnx(_model([node], inputs, constants))
