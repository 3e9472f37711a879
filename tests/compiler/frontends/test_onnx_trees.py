"""Trees, linear models and tables of `ai.onnx.ml`, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import random, run
from tinsmith.compiler.errors import ModelError, UnsupportedOpError
from tinsmith.compiler.frontends.onnx.model import import_onnx

FEATURES = 5


def _forest(
    seed: int,
    prefix: str,
    targets: list[int],
    modes: tuple[str, ...] = ("BRANCH_LEQ",),
    positive: bool = False,
    missing: bool = False,
) -> dict[str, Any]:
    """The attributes of four random trees whose leaves tell of `targets`."""
    generator = np.random.default_rng(seed)
    nodes: dict[str, list] = {
        name: []
        for name in ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids",
                     "falsenodeids", "missing_value_tracks_true")
    }  # fmt: skip
    leaves: dict[str, list] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, depth: int) -> int:
        own, number = len(nodes["nodeids"]), nodes["treeids"].count(tree)
        for name in nodes:
            nodes[name].append(0)
        nodes["treeids"][own], nodes["nodeids"][own] = tree, number
        nodes["values"][own] = float(np.float32(generator.standard_normal()))
        if depth == 0:
            nodes["modes"][own] = "LEAF"
            for target in targets:
                weight = generator.random() / 4 if positive else generator.standard_normal()
                entry = (tree, number, target, float(weight))
                for name, item in zip(leaves, entry, strict=True):
                    leaves[name].append(item)
            return number
        nodes["modes"][own] = str(generator.choice(modes))
        nodes["featureids"][own] = int(generator.integers(FEATURES))
        nodes["missing_value_tracks_true"][own] = int(missing and generator.integers(2))
        nodes["truenodeids"][own] = grow(tree, depth - 1)
        nodes["falsenodeids"][own] = grow(tree, depth - 1 if tree % 2 else 0)
        return number

    for tree in range(4):
        grow(tree, 3)
    found = {f"nodes_{name}": values for name, values in nodes.items()}
    return found | {f"{prefix}_{name}": values for name, values in leaves.items()}


def _model(nodes: list[onnx.NodeProto], types: dict[str, int], version: int = 2) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tables",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, FEATURES]),
            helper.make_tensor_value_info("codes", TensorProto.INT64, [3]),
        ],
        [
            helper.make_tensor_value_info(name, types.get(name[0], TensorProto.FLOAT), None)
            for node in nodes
            for name in node.output
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _node(
    operator: str, outputs: list[str], source: str = "x", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(operator, [source], outputs, domain="ai.onnx.ml", **attributes)


def _agrees(nodes: list[onnx.NodeProto], gaps: bool = True, **types: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = random((7, FEATURES))
    if gaps:
        x[0, :2] = np.nan
    codes = np.array([1, 5, 7])
    proto = _model(nodes, types)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    expected = session.run(None, {"x": x, "codes": codes})
    for name, ours, theirs in zip(names, run(import_onnx(proto), x, codes), expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), 1e-5, 1e-6, err_msg=name)


def test_regressors() -> None:
    every = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ")
    both = [0, 1]
    _agrees(
        [
            _node("TreeEnsembleRegressor", ["sum"], n_targets=2, base_values=[0.5, -1.0],
                  post_transform="LOGISTIC", **_forest(0, "target", both)),
            _node("TreeEnsembleRegressor", ["mean"], n_targets=2, aggregate_function="AVERAGE",
                  **_forest(1, "target", both, every)),
            _node("TreeEnsembleRegressor", ["max"], n_targets=1, aggregate_function="MAX",
                  **_forest(2, "target", [0], missing=True)),
            _node("LinearRegressor", ["linear"], targets=2, intercepts=[0.1, 0.2],
                  coefficients=random((10,)).tolist()),
        ]
    )  # fmt: skip


def test_classifiers() -> None:
    nodes = []
    for i, (targets, positive, transform) in enumerate(
        [
            ([0, 1, 2], False, "SOFTMAX"),
            ([0], False, "LOGISTIC"),
            ([0], True, "NONE"),
            ([1], True, "SOFTMAX"),
        ]
    ):
        labels = [4, 9, 2] if len(targets) == 3 else [3, 8]
        forest = _forest(i, "class", targets, positive=positive)
        nodes.append(
            _node("TreeEnsembleClassifier", [f"l{i}", f"scores{i}"], classlabels_int64s=labels,
                  post_transform=transform, **forest)
        )  # fmt: skip
    nodes.append(
        _node("LinearClassifier", ["l9", "scores9"], coefficients=[0.5, 1.0, -1.0, 2.0, 0.1],
              intercepts=[0.1], classlabels_ints=[3, 5], post_transform="LOGISTIC")
    )  # fmt: skip
    _agrees(nodes, l=TensorProto.INT64)


def test_tables() -> None:
    _agrees(
        [
            _node("Scaler", ["scaled"], offset=random((5,)).tolist(), scale=[2.0] * 5),
            _node("Normalizer", ["normal"], norm="L2"),
            _node("Binarizer", ["above"], threshold=0.3),
            _node("LabelEncoder", ["values"], "codes", keys_int64s=[1, 2, 5],
                  values_floats=[0.1, 0.2, 0.5], default_float=9.0),
        ],
        gaps=False,
    )  # fmt: skip


def test_what_is_no_forest_is_refused() -> None:
    good = _forest(0, "target", [0])
    for name, value, message in (
        ("nodes_truenodeids", [99] * len(good["nodes_nodeids"]), "is not there"),
        ("nodes_featureids", [FEATURES] * len(good["nodes_nodeids"]), "do not have"),
        ("nodes_falsenodeids", [0] * len(good["nodes_nodeids"]), "no root, or several"),
        ("target_nodeids", [99] * len(good["target_nodeids"]), "is not there"),
        ("target_ids", [3] * len(good["target_ids"]), "beyond 1"),
        ("nodes_modes", ["BRANCH_MEMBER"] * len(good["nodes_modes"]), "no comparison"),
    ):
        node = _node("TreeEnsembleRegressor", ["y"], n_targets=1, **(good | {name: value}))
        with pytest.raises(ModelError, match=message):
            import_onnx(_model([node], {}))


def test_texts_and_maps_are_refused() -> None:
    texts = _node("TreeEnsembleClassifier", ["l", "y"], classlabels_strings=["a", "b"],
                  **_forest(0, "class", [0, 1]))  # fmt: skip
    with pytest.raises(ModelError, match="labels that are texts"):
        import_onnx(_model([texts], {"l": TensorProto.INT64}))
    maps = _node("ZipMap", ["y"], classlabels_int64s=[0, 1])
    with pytest.raises(UnsupportedOpError, match=r"ai\.onnx\.ml\.ZipMap"):
        import_onnx(_model([maps], {}))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables_of_branches_and_leaves(dtype: type) -> None:
    """Two trees whose branches and leaves are numbered apart, one of a single branch."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def tensor(values: Any, kind: type = dtype) -> TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, kind))

    node = _node(
        "TreeEnsemble",
        ["y"],
        n_targets=2,
        aggregate_function=1,
        post_transform=0,
        tree_roots=[0, 2],
        nodes_featureids=[0, 1, 3],
        nodes_modes=tensor([0, 3, 2], np.uint8),
        nodes_splits=tensor([0.1, -0.2, 0.4]),
        nodes_truenodeids=[1, 0, 3],
        nodes_trueleafs=[0, 1, 1],
        nodes_falsenodeids=[2, 1, 4],
        nodes_falseleafs=[1, 1, 1],
        nodes_missing_value_tracks_true=[1, 0, 1],
        leaf_targetids=[0, 1, 0, 1, 0],
        leaf_weights=tensor([1.5, -2.0, 0.25, 4.0, 8.0]),
    )
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", element, [7, FEATURES])],
        [helper.make_tensor_value_info("y", element, [7, 2])],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 5)], ir_version=10
    )
    x = random((7, FEATURES)).astype(dtype)
    x[0, :2] = np.nan
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (found,) = run(import_onnx(proto), x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], 1e-6)
