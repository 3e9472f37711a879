"""Ensembles of decision trees of `ai.onnx.ml`, walked level by level for all trees at once.

The nodes of all trees stand in tables; a row of the state holds, for one sample, the node that
each tree has come to. A leaf leads to itself, so that every tree takes as many steps as the
deepest one. What a leaf is worth is a row of a table, and the ensemble adds up rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters.constants import constant, dtype_of, static_shape

_COMPARISONS = {
    "BRANCH_LEQ": relax.op.less_equal,
    "BRANCH_LT": relax.op.less,
    "BRANCH_GTE": relax.op.greater_equal,
    "BRANCH_GT": relax.op.greater,
    "BRANCH_EQ": relax.op.equal,
    "BRANCH_NEQ": relax.op.not_equal,
}
_MOST_LEVELS = 200
_MOST_WORTHS = 1 << 26


@dataclass(frozen=True)
class Forest:
    """All nodes of an ensemble, by position; leaves lead to themselves.

    `roots` has the first node of each tree, `worth` a row (targets,) for each node, `levels` the
    number of branches on the longest way.
    """

    features: np.ndarray
    thresholds: np.ndarray
    modes: np.ndarray
    missing: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    roots: np.ndarray
    worth: np.ndarray
    levels: int


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
    modes = np.array([mode.decode() for mode in attr["nodes_modes"]])
    leaf = modes == "LEAF"
    unknown = set(modes[~leaf].tolist()) - set(_COMPARISONS)
    if unknown:
        raise ValueError(f"there is no comparison {min(unknown)!r}")
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
    worth = _worth(attr, prefix, column, position, count, targets, thresholds.dtype)
    levels = levels_of(ways, leaf, roots)
    missing = column("nodes_missing_value_tracks_true", 0).astype(bool)
    return Forest(
        chosen.astype(np.int32), thresholds, modes, missing, ways[0], ways[1],
        roots.astype(np.int32), worth, levels,
    )  # fmt: skip


def _worth(
    attr: Any, prefix: str, column: Any, position: dict, count: int, targets: int, dtype: Any
) -> np.ndarray:
    if count * targets > _MOST_WORTHS:
        raise ValueError(f"{count} nodes with {targets} targets are too many")
    worth = np.zeros((count, targets), np.float64 if dtype == np.float64 else np.float32)
    ids = np.array(attr[f"{prefix}_ids"])
    if ids.size and (ids.min() < 0 or ids.max() >= targets):
        raise ValueError(f"a leaf counts for a target beyond {targets}")
    pairs = zip(attr[f"{prefix}_treeids"], attr[f"{prefix}_nodeids"], strict=True)
    rows = np.array([position.get((int(t), int(n)), -1) for t, n in pairs])
    if (rows < 0).any():
        raise ValueError("a weight belongs to a node that is not there")
    np.add.at(worth, (rows, ids), column(f"{prefix}_weights"))
    return worth


def levels_of(ways: list[np.ndarray], leaf: np.ndarray, roots: np.ndarray) -> int:
    """The longest way from a root to a leaf; ValueError if some way never ends."""
    front, levels = np.unique(roots), 0
    while not leaf[front].all():
        levels += 1
        if levels > _MOST_LEVELS:
            raise ValueError(f"a tree is deeper than {_MOST_LEVELS} levels, or a circle")
        front = np.unique(np.concatenate([way[front] for way in ways]))
    return levels


def evaluate(bb: relax.BlockBuilder, x: relax.Expr, forest: Forest) -> relax.Expr:
    """What each tree says of each row of `x` (B, F): (B, trees, targets)."""
    batch, trees = static_shape(x)[0], len(forest.roots)
    dtype = str(forest.worth.dtype)
    if dtype_of(x) != dtype:
        x = bb.emit(relax.op.astype(x, dtype))
    state: relax.Expr = constant(np.broadcast_to(forest.roots, (batch, trees)).copy())

    def look_up(table: np.ndarray) -> relax.Expr:
        return bb.emit(relax.op.take(constant(table), state, axis=0, mode="clip"))

    branches = forest.modes != "LEAF"
    kinds = sorted(set(forest.modes[branches]))
    for _ in range(forest.levels):
        features = look_up(forest.features)
        values = bb.emit(relax.op.gather_elements(x, features, axis=1))
        thresholds = look_up(forest.thresholds.astype(dtype))
        goes = bb.emit(_COMPARISONS[kinds[0]](values, thresholds))
        for kind in kinds[1:]:
            other = bb.emit(_COMPARISONS[kind](values, thresholds))
            is_kind = look_up(forest.modes == kind)
            goes = bb.emit(relax.op.where(is_kind, other, goes))
        if forest.missing[branches].any():
            absent = relax.op.logical_and(relax.op.isnan(values), look_up(forest.missing))
            goes = bb.emit(relax.op.logical_or(goes, bb.emit(absent)))
        state = bb.emit(relax.op.where(goes, look_up(forest.yes), look_up(forest.no)))
    return look_up(forest.worth)


def aggregated(bb: relax.BlockBuilder, said: relax.Expr, how: str) -> relax.Expr:
    """What the trees say (B, trees, targets) put together: (B, targets)."""
    reduce = {
        "SUM": relax.op.sum, "AVERAGE": relax.op.sum, "MIN": relax.op.min, "MAX": relax.op.max,
    }.get(how)  # fmt: skip
    if reduce is None:
        raise ValueError(f"there is no aggregation {how!r}")
    scores = bb.emit(reduce(said, [1]))
    if how != "AVERAGE":
        return scores
    trees = relax.const(float(static_shape(said)[1]), dtype_of(scores))
    return bb.emit(relax.op.divide(scores, trees))


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
        said = evaluate(bb, x, forest)
        how = attr.get("aggregate_function", b"SUM").decode()
        scores = plus_base(bb, aggregated(bb, said, how), attr)
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
        scores = bb.emit(relax.op.sum(evaluate(bb, x, forest), [1]))
        told = sorted(set(attr["class_ids"]))
        name = attr.get("post_transform", b"NONE").decode()
        if len(labels) == 2 and len(told) == 1:
            if attr.get("base_values") or "base_values_as_tensor" in attr:
                raise ValueError("base values of a classifier of one score are not supported")
            score = bb.emit(relax.op.strided_slice(scores, [1], [told[0]], [told[0] + 1]))
            positive = bool((forest.worth >= 0).all())
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
