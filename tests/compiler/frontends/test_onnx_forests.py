"""Ensembles of trees of awkward shapes, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import run
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx

FEATURES = 6
# Full trees of 2**16 leaves have more nodes than 16 bits can count.
_LEVELS_OF_MANY = 16
Grow = Callable[[int, int], bool]


def _forest(
    seed: int,
    trees: int,
    targets: int,
    branches: Grow,
    modes: tuple[str, ...] = ("BRANCH_LEQ",),
    missing: bool = False,
    told: int = 1,
) -> dict[str, Any]:
    """Random trees: `branches(tree, depth)` says whether a node on the longest way is a branch.

    On its other side is a leaf in every second tree. Each leaf tells of `told` targets.
    """
    generator = np.random.default_rng(seed)
    rows: list[tuple] = []
    weights: list[tuple] = []

    def grow(tree: int, depth: int, first: int, main: bool = True) -> int:
        number = len(rows) - first
        rows.append(())
        if not (main and branches(tree, depth)):
            for target in generator.permutation(targets)[:told]:
                weights.append((tree, number, int(target), float(generator.standard_normal())))
            rows[first + number] = (tree, number, "LEAF", 0, 0.0, 0, 0, 0)
            return number
        yes = grow(tree, depth + 1, first)
        no = grow(tree, depth + 1, first, main=bool(tree % 2))
        # Thresholds lie on a grid, so that values are equal to some.
        split = float(generator.integers(-4, 5)) / 4
        rows[first + number] = (
            tree, number, str(generator.choice(modes)), int(generator.integers(FEATURES)),
            split, yes, no, int(missing and generator.integers(2)),
        )  # fmt: skip
        return number

    for tree in range(trees):
        grow(tree, 0, len(rows))
    names = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids",
             "missing_value_tracks_true")  # fmt: skip
    names_of_weights = ("treeids", "nodeids", "ids", "weights")
    of_nodes = zip(names, zip(*rows, strict=True), strict=True)
    of_weights = zip(names_of_weights, zip(*weights, strict=True), strict=True)
    return {f"nodes_{name}": list(values) for name, values in of_nodes} | {
        f"target_{name}": list(values) for name, values in of_weights
    }


def _values(rows: int) -> np.ndarray:
    values = np.random.default_rng(rows).integers(-4, 5, (rows, FEATURES)).astype(np.float32) / 4
    values[:: max(1, rows // 2), 1] = np.nan
    return values


def _agrees(nodes: list[onnx.NodeProto], x: np.ndarray) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "forests",
        [helper.make_tensor_value_info("x", element, x.shape)],
        [helper.make_tensor_value_info(node.output[0], element, None) for node in nodes],
    )
    imports = [helper.make_opsetid("ai.onnx.ml", 5 if nodes[0].op_type == "TreeEnsemble" else 3)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    expected = session.run(None, {"x": x})
    for node, ours, theirs in zip(nodes, run(import_onnx(proto), x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5, err_msg=node.output[0])


def _regressor(name: str, targets: int = 1, how: str = "SUM", **forest: Any) -> onnx.NodeProto:
    return helper.make_node(
        "TreeEnsembleRegressor", ["x"], [name], domain="ai.onnx.ml",
        n_targets=targets, aggregate_function=how, **forest,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [5, 13])
def test_shapes_of_trees_and_batches(rows: int) -> None:
    every = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ")
    unequal = _forest(2, 17, 3, lambda tree, depth: depth < (60 if tree == 4 else tree % 7))
    leaves = _forest(0, 3, 1, lambda tree, depth: False)
    one = _forest(1, 1, 1, lambda tree, depth: depth < 4)
    some = _forest(5, 9, 4, lambda tree, depth: depth < 3, every, missing=True, told=2)
    nodes = [
        _regressor("leaves", **leaves),
        _regressor("one", **one),
        _regressor("unequal", 3, **unequal),
        _regressor("every", 4, **some),
        _regressor("least", 4, "MIN", **some),
        _regressor("most", 4, "MAX", **some),
        _regressor("mean", 4, "AVERAGE", **some),
    ]
    for kind in every:
        forest = _forest(
            7, 8, 1, lambda tree, depth: depth < 4, (kind,), missing=kind < "BRANCH_GT"
        )
        nodes.append(_regressor(kind, **forest))
    _agrees(nodes, _values(rows))


@pytest.mark.parametrize(("dtype", "rows"), [(np.float32, 1), (np.float64, 11)])
def test_many_nodes_and_shared_ones(dtype: type, rows: int) -> None:
    """A full tree that is larger than 16 bits can count, and a chain with one common leaf."""
    many = (1 << _LEVELS_OF_MANY) - 1
    chain = 300
    inner = np.arange(many)
    deepest = inner >= many // 2
    yes, no = 2 * inner + 1, 2 * inner + 2
    links = many + np.arange(chain)
    last = np.arange(chain) == chain - 1
    generator = np.random.default_rng(0)
    leaves = many + 1 + 2

    def tensor(values: np.ndarray, kind: type = dtype) -> TensorProto:
        return onnx.numpy_helper.from_array(values.astype(kind))

    node = helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=2,
        aggregate_function=1,
        tree_roots=[0, many],
        nodes_featureids=[*generator.integers(FEATURES, size=many), *([2] * chain)],
        nodes_modes=tensor(np.repeat([0, 4], [many, chain]), np.uint8),
        nodes_splits=tensor(
            np.concatenate([generator.integers(-3, 4, many) / 4, np.arange(chain) / 4])
        ),
        nodes_truenodeids=[*np.where(deepest, yes - many, yes), *([many + 1] * chain)],
        nodes_trueleafs=[*deepest.astype(int), *([1] * chain)],
        nodes_falsenodeids=[
            *np.where(deepest, no - many, no),
            *np.where(last, many + 2, links + 1),
        ],
        nodes_falseleafs=[*deepest.astype(int), *last.astype(int)],
        leaf_targetids=(np.arange(leaves) % 2).tolist(),
        leaf_weights=tensor(generator.standard_normal(leaves)),
    )
    _agrees([node], _values(rows).astype(dtype))


def test_circles_are_refused_and_diamonds_are_not() -> None:
    """Of 64 branches, both children of each are the next one: 2**64 ways, none of them endless."""

    def model(last: list[int]) -> onnx.ModelProto:
        following, flags = [*range(1, 64), last[0]], [*([0] * 63), last[1]]
        node = helper.make_node(
            "TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, tree_roots=[0],
            nodes_featureids=[0] * 64, nodes_truenodeids=following, nodes_falsenodeids=following,
            nodes_trueleafs=flags, nodes_falseleafs=flags, leaf_targetids=[0],
            nodes_modes=onnx.numpy_helper.from_array(np.zeros(64, np.uint8)),
            nodes_splits=onnx.numpy_helper.from_array(np.zeros(64, np.float32)),
            leaf_weights=onnx.numpy_helper.from_array(np.array([2.5], np.float32)),
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "diamonds",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, FEATURES])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1])],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 5)])

    (found,) = run(import_onnx(model([0, 1])), _values(2))
    np.testing.assert_array_equal(found, np.full((2, 1), 2.5, np.float32))
    with pytest.raises(ModelError, match="or a circle"):
        import_onnx(model([1, 0]))
