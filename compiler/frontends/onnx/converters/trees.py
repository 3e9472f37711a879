"""Ensembles of decision trees of `ai.onnx.ml`: what trees say, put together and transformed."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import constant, dtype_of, static_shape
from tinsmith.targets.operators import (
    ABSENT,
    FEATURE_BITS,
    LANES,
    OUTCOMES,
    Forest,
    ForestWorkload,
    forest_kernel,
    tables_of,
)

_MOST_NODES = 1 << 24
_MOST_WEIGHTS = 1 << 26
# How scores are combined, and what changes nothing then.
_COMBINATIONS = {
    "SUM": ("sum", 0.0),
    "AVERAGE": ("sum", 0.0),
    "MIN": ("min", np.inf),
    "MAX": ("max", -np.inf),
}


def read_forest(attr: Any, prefix: str, targets: int, features: int) -> Forest:
    """The ensemble in the attributes of a node; ValueError for what is no forest.

    `prefix` is "target" or "class", as the attributes about leaves are called.
    """

    def column(name: str, default: int | None = None) -> np.ndarray:
        stored = attr.get(f"{name}_as_tensor")
        values = np.array(attr[name]) if name in attr else None
        if stored is not None:
            import onnx

            values = onnx.numpy_helper.to_array(stored)
        if values is None:
            if default is None:
                raise ValueError(f"the attribute {name} is missing")
            return np.full(count, default)
        return values

    count = len(attr.get("nodes_nodeids", ()))
    trees, numbers = column("nodes_treeids"), column("nodes_nodeids")
    position = {
        pair: i for i, pair in enumerate(zip(trees.tolist(), numbers.tolist(), strict=True))
    }
    if not count or len(position) != count:
        raise ValueError("the trees have no nodes, or two with the same number")
    modes = [mode.decode() for mode in attr["nodes_modes"]]
    unknown = set(modes) - set(OUTCOMES) - {"LEAF"}
    if unknown:
        raise ValueError(f"there is no comparison {min(unknown)!r}")
    taken = np.array([OUTCOMES.get(mode, 0) for mode in modes])
    leaf = taken == 0
    own = np.arange(count)
    ways = []
    for name in ("nodes_truenodeids", "nodes_falsenodeids"):
        targets_of = zip(trees.tolist(), column(name).tolist(), strict=True)
        way = np.array([position.get(pair, -1) for pair in targets_of])
        if (way[~leaf] < 0).any():
            raise ValueError("a branch leads to a node that is not there")
        ways.append(np.where(leaf, own, way).astype(np.int32))
    chosen = np.where(leaf, 0, column("nodes_featureids"))
    if ((chosen < 0) | (chosen >= features)).any():
        raise ValueError(f"a branch asks for a feature that inputs of {features} do not have")
    thresholds = column("nodes_values")
    reached = np.zeros(count, bool)
    reached[np.concatenate([way[~leaf] for way in ways])] = True
    roots = np.flatnonzero(~reached)
    if sorted(trees[roots].tolist()) != sorted(set(trees.tolist())):
        raise ValueError("a tree has no root, or several")
    missing = column("nodes_missing_value_tracks_true", 0).astype(bool)
    rows = zip(attr[f"{prefix}_treeids"], attr[f"{prefix}_nodeids"], strict=True)
    weight_nodes = np.array([position.get((int(t), int(n)), -1) for t, n in rows], np.int64)
    dtype = np.float64 if thresholds.dtype == np.float64 else np.float32
    return checked(
        Forest(
            chosen.astype(np.int64), thresholds.astype(dtype),
            np.where(~leaf & missing, taken | ABSENT, taken), ways[0], ways[1], roots,
            weight_nodes, np.array(attr[f"{prefix}_ids"], np.int64),
            column(f"{prefix}_weights").astype(dtype), targets,
        )
    )  # fmt: skip


def checked(forest: Forest) -> Forest:
    """`forest`, whose indices have been found to be right; ValueError if its weights are not."""
    targets, ids = forest.targets, forest.weight_targets
    if len({len(forest.weight_nodes), len(ids), len(forest.weights)}) != 1:
        raise ValueError("the tables of weights differ in length")
    if ids.size and (ids.min() < 0 or ids.max() >= targets):
        raise ValueError(f"a leaf counts for a target beyond {targets}")
    if (forest.weight_nodes < 0).any():
        raise ValueError("a weight belongs to a node that is not there")
    count = len(forest.taken)
    if count > _MOST_NODES or len(np.unique(forest.weight_nodes)) * targets > _MOST_WEIGHTS:
        raise ValueError(f"{count} nodes with {targets} targets are too many")
    return forest


def evaluate(bb: relax.BlockBuilder, x: relax.Expr, forest: Forest, how: str) -> relax.Expr:
    """What the trees say of each row of `x` (B, F), put together: (B, targets)."""
    if how not in _COMBINATIONS:
        raise ValueError(f"there is no aggregation {how!r}")
    combine, neutral = _COMBINATIONS[how]
    rows, features = static_shape(x)
    if features >= 1 << FEATURE_BITS or rows * features >= 1 << 31:
        raise ValueError(f"{rows} rows of {features} features are too many")
    dtype = str(forest.weights.dtype)
    if dtype_of(x) != dtype:
        x = bb.emit(relax.op.astype(x, dtype))
    tables = tables_of(forest, LANES, neutral)
    leaves, entries = tables.weights.shape
    workload = ForestWorkload(
        rows, features, tables.trees, tables.levels, len(tables.nodes), leaves, entries,
        forest.targets, dtype, frozenset(forest.taken[forest.taken > 0].tolist()), combine,
    )  # fmt: skip
    arrays = [tables.nodes, tables.leaf_of, tables.weights]
    if entries < forest.targets:
        arrays.append(tables.target_of)
    function = bb.add_func(forest_kernel(workload), "forest")
    shape = (rows, workload.chunks, forest.targets)
    scores = bb.emit(
        relax.call_tir(
            function,
            relax.Tuple([x, *map(constant, arrays)]),
            relax.TensorType(shape, dtype),
        )
    )
    reduce = {"sum": relax.op.sum, "min": relax.op.min, "max": relax.op.max}[combine]
    scores = bb.emit(reduce(scores, [1]))
    if how == "AVERAGE":
        scores = bb.emit(relax.op.divide(scores, relax.const(float(len(forest.roots)), dtype)))
    if neutral:
        # No leaf told of the target.
        silent = bb.emit(relax.op.equal(scores, relax.const(neutral, dtype)))
        scores = bb.emit(relax.op.where(silent, relax.const(0.0, dtype), scores))
    return scores


def transformed(bb: relax.BlockBuilder, scores: relax.Expr, name: str) -> relax.Expr:
    """`scores` (B, targets) after the transformation that an operator names.

    A single score stays what it is, as in ONNX Runtime.
    """
    if name not in ("NONE", "LOGISTIC", "SOFTMAX"):
        raise ValueError(f"the transformation {name} is not supported")
    if name == "NONE" or static_shape(scores)[1] == 1:
        return scores
    if name == "LOGISTIC":
        return bb.emit(relax.op.sigmoid(scores))
    return bb.emit(relax.op.nn.softmax(scores, axis=-1))


def with_the_other(
    bb: relax.BlockBuilder, score: relax.Expr, name: str, probabilities: bool
) -> relax.Expr:
    """Both scores (B, 2) of two classes of which `score` (B, 1) tells the second, as ONNX Runtime
    writes them: as logistic functions if that is asked for, otherwise untransformed.
    """
    negative = bb.emit(relax.op.negative(score))
    if name == "LOGISTIC":
        pair = bb.emit(relax.op.concat([negative, score], axis=1))
        return bb.emit(relax.op.sigmoid(pair))
    one = relax.const(1.0, dtype_of(score))
    other = bb.emit(relax.op.add(one, negative)) if probabilities else negative
    return bb.emit(relax.op.concat([other, score], axis=1))


class TreeEnsembleRegressor(OnnxOpConverter):
    """Sums, means or extremes of what the trees say, for each target."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        targets = attr.get("n_targets", 1)
        forest = read_forest(attr, "target", targets, static_shape(x)[-1])
        how = attr.get("aggregate_function", b"SUM").decode()
        scores = plus_base(bb, evaluate(bb, x, forest, how), attr)
        result = transformed(bb, scores, attr.get("post_transform", b"NONE").decode())
        return relax.op.astype(result, "float32")


def plus_base(bb: relax.BlockBuilder, scores: relax.Expr, attr: Any) -> relax.Expr:
    """`scores` plus the attribute `base_values`, if there is one."""
    stored = attr.get("base_values_as_tensor")
    base = np.array(attr.get("base_values") or (), np.float32)
    if stored is not None:
        import onnx

        base = onnx.numpy_helper.to_array(stored)
    if not base.size:
        return scores
    return bb.emit(relax.op.add(scores, constant(base.astype(dtype_of(scores)).reshape(1, -1))))


def integer_labels(attr: Any) -> np.ndarray:
    """The classes of a classifier; ValueError for names."""
    for name in ("classlabels_int64s", "classlabels_ints"):
        if attr.get(name):
            return np.array(attr[name], np.int64)
    raise ValueError("labels that are texts are not supported; export the model with integers")


class TreeEnsembleClassifier(OnnxOpConverter):
    """Labels and scores of the classes.

    Where the leaves of a classifier of two classes tell of one alone, the second is chosen from a
    score of 0 on, or of one half if no weight is negative.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, labels = inputs[0], integer_labels(attr)
        forest = read_forest(attr, "class", len(labels), static_shape(x)[-1])
        scores = evaluate(bb, x, forest, "SUM")
        told = sorted(set(attr["class_ids"]))
        name = attr.get("post_transform", b"NONE").decode()
        if len(labels) == 2 and len(told) == 1:
            if attr.get("base_values") or "base_values_as_tensor" in attr:
                raise ValueError("base values of a classifier of one score are not supported")
            score = bb.emit(relax.op.strided_slice(scores, [1], [told[0]], [told[0] + 1]))
            positive = bool((forest.weights >= 0).all())
            border = relax.const(0.5 if positive else 0.0, dtype_of(score))
            chosen = bb.emit(relax.op.astype(relax.op.greater(score, border), "int64"))
            chosen = bb.emit(relax.op.reshape(chosen, (static_shape(x)[0],)))
            first = told[0] == 0
            final = (
                with_the_other(bb, score, name, positive)
                if first
                else transformed(bb, scores, name)
            )
        else:
            scores = plus_base(bb, scores, attr)
            chosen = bb.emit(relax.op.argmax(scores, axis=1))
            final = transformed(bb, scores, name)
        result = bb.emit(relax.op.take(constant(labels), chosen, axis=0, mode="clip"))
        return relax.Tuple([result, bb.emit(relax.op.astype(final, "float32"))])
