"""TreeEnsemble of `ai.onnx.ml` 5: branches and leaves in tables of their own, in tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import dtype_of, static_shape
from tinsmith.compiler.frontends.onnx.converters.trees import checked, evaluate, transformed
from tinsmith.targets.operators import ABSENT, OUTCOMES, Forest

# By number, as the operator's definition lists them.
_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_AGGREGATIONS = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMATIONS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


class TreeEnsemble(OnnxOpConverter):
    """Sums, means or extremes of what the trees say, for each target, in the input's dtype."""

    @classmethod
    def _impl_v5(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        forest = _read(attr, static_shape(x)[-1])
        how = _named(_AGGREGATIONS, attr.get("aggregate_function", 1), "aggregation")
        scores = evaluate(bb, x, forest, how)
        name = _named(_TRANSFORMATIONS, attr.get("post_transform", 0), "transformation")
        return relax.op.astype(transformed(bb, scores, name), dtype_of(x))


def _named(names: tuple[str, ...], number: int, what: str) -> str:
    if not 0 <= number < len(names):
        raise ValueError(f"there is no {what} number {number}")
    return names[number]


def _read(attr: Any, features: int) -> Forest:
    """The ensemble in the attributes; leaves follow the branches. ValueError for no forest."""

    def tensor(name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(attr[name]).reshape(-1)

    thresholds, weights = tensor("nodes_splits"), tensor("leaf_weights")
    branches, leaves = len(thresholds), len(weights)
    numbers = tensor("nodes_modes").astype(int)
    if numbers.size and numbers.max() >= len(_MODES):
        raise ValueError("branches by membership in a set are not supported")
    targets = int(attr.get("n_targets", 1))
    count = branches + leaves
    own = np.arange(branches, count)
    ways = []
    for nodes, flags in (
        ("nodes_truenodeids", "nodes_trueleafs"),
        ("nodes_falsenodeids", "nodes_falseleafs"),
    ):
        place, to_leaf = np.array(attr[nodes]), np.array(attr[flags]).astype(bool)
        if len(place) != branches or len(to_leaf) != branches:
            raise ValueError(f"{nodes} has {len(place)} entries for {branches} branches")
        if ((place < 0) | (place >= np.where(to_leaf, leaves, branches))).any():
            raise ValueError("a branch leads to a node that is not there")
        ways.append(np.concatenate([place + branches * to_leaf, own]).astype(np.int32))
    chosen, roots = np.array(attr["nodes_featureids"]), np.array(attr["tree_roots"])
    ids = np.array(attr["leaf_targetids"])
    for values, limit, what in (
        (chosen, features, "feature"),
        (roots, branches, "root"),
        (ids, targets, "target"),
    ):
        if values.size and (values.min() < 0 or values.max() >= limit):
            raise ValueError(f"a {what} is not one of {limit}")
    if not roots.size or len(chosen) != branches or len(ids) != leaves:
        raise ValueError("there are no trees, or tables of different lengths")
    missing = np.array(attr.get("nodes_missing_value_tracks_true") or [0] * branches, bool)
    taken = np.array([OUTCOMES[_MODES[number]] for number in numbers], np.int64)
    rest = np.zeros(leaves, np.int64)
    return checked(
        Forest(
            np.concatenate([chosen, rest]),
            np.concatenate([thresholds, rest.astype(thresholds.dtype)]),
            np.concatenate([np.where(missing, taken | ABSENT, taken), rest]),
            ways[0],
            ways[1],
            roots,
            own,
            ids,
            weights,
            targets,
        )
    )
