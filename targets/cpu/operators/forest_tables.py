"""An ensemble of trees as the tables that its kernel walks through.

A node is two int64: the bits of its threshold, and a link

    bits 0-23   the feature that is compared
    bits 24-28  for which outcomes of the comparison the branch is taken (LESS ... NO_NUMBER)
    bit  31     whether this is a leaf
    bits 32-62  the place of the child where the branch is not taken, that is twice its number;
                the other one follows it

so that a step reads one piece of 16 bytes. A leaf leads to itself: its threshold is no number, and
nothing is true of that. The roots of all trees come first, then the branches below them, one tree
after the other, each from the root downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEATURE_BITS = 24
# What a comparison of a value with a threshold may come to.
LESS, EQUAL, GREATER, ABSENT, NO_NUMBER = (1 << i for i in range(5))
OUTCOMES = {
    "BRANCH_LEQ": LESS | EQUAL,
    "BRANCH_LT": LESS,
    "BRANCH_GTE": GREATER | EQUAL,
    "BRANCH_GT": GREATER,
    "BRANCH_EQ": EQUAL,
    "BRANCH_NEQ": LESS | GREATER | ABSENT | NO_NUMBER,
}
MOST_LEVELS = 4096
_LEAF = 1 << 31


@dataclass(frozen=True)
class Forest:
    """All nodes of an ensemble, by position, as a file tells them; leaves lead to themselves.

    `taken` says for which outcomes a branch is taken (0 for a leaf), `yes` and `no` where it leads
    to then and otherwise; `roots` has the first node of each tree. Weights are those of a leaf
    (`weight_nodes`) for a target (`weight_targets`). Nodes may be shared; the dtype of `thresholds`
    and `weights` is float32 or float64.
    """

    features: np.ndarray
    thresholds: np.ndarray
    taken: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    roots: np.ndarray
    weight_nodes: np.ndarray
    weight_targets: np.ndarray
    weights: np.ndarray
    targets: int


@dataclass(frozen=True)
class ForestTables:
    """What the kernel reads: see the module, and `ForestKernel` for the shapes.

    `levels` is the mean length of the ways from a root to a leaf.
    """

    nodes: np.ndarray
    trees: int
    leaf_of: np.ndarray
    weights: np.ndarray
    target_of: np.ndarray
    levels: int


def order_of_branches(forest: Forest) -> tuple[np.ndarray, int]:
    """The branches that can be reached, tree by tree from the root downwards, and the mean level.

    A node has one level, that of the longest way to it. ValueError if some way never ends, or
    takes more than `MOST_LEVELS` branches. Every branch is looked at twice, however nodes are
    shared.
    """
    branch = forest.taken > 0
    tree_of = np.full(len(branch), -1)
    parents = np.zeros(len(branch), np.int64)

    def children(front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The children that are branches, and the tree of each."""
        found = np.concatenate([forest.no[front], forest.yes[front]])
        return found[branch[found]], np.tile(tree_of[front], 2)[branch[found]]

    front = np.unique(forest.roots[branch[forest.roots]])
    tree_of[forest.roots] = np.arange(len(forest.roots))
    for _ in range(MOST_LEVELS):
        found, trees = children(front)
        np.add.at(parents, found, 1)
        fresh = tree_of[found] < 0
        front = np.unique(found[fresh])
        tree_of[found[fresh]] = trees[fresh]
        if not front.size:
            break
    reached = np.flatnonzero(branch & (tree_of >= 0))
    level_of = np.full(len(branch), -1)
    front = reached[parents[reached] == 0]
    for level in range(MOST_LEVELS):
        level_of[front] = level
        found, _ = children(front)
        np.subtract.at(parents, found, 1)
        front = np.unique(found[parents[found] == 0])
        if not front.size:
            break
    if (level_of[reached] < 0).any():
        raise ValueError(f"a tree is deeper than {MOST_LEVELS} levels, or a circle")
    levels = 1 + round(float(level_of[reached].mean())) if reached.size else 0
    return reached[np.lexsort((level_of[reached], tree_of[reached]))], levels


def tables_of(forest: Forest, lanes: int, neutral: float) -> ForestTables:
    """The tables of `forest`.

    The number of trees is made a multiple of `lanes` by leaves that say nothing, which is what
    `neutral` is for the way in which trees are combined.
    """
    branches, levels = order_of_branches(forest)
    trees = -(-len(forest.roots) // lanes) * lanes
    # The record of a node stands wherever a branch leads to it: two for each branch.
    first_child = np.full(len(forest.taken), -1, np.int64)
    first_child[branches] = trees + 2 * np.arange(len(branches))
    children = np.stack([forest.no[branches], forest.yes[branches]], 1).reshape(-1)
    mute = np.full(trees - len(forest.roots), -1)
    source = np.concatenate([forest.roots, mute, children])
    own = np.arange(len(source))
    is_leaf = (source < 0) | (first_child[source] < 0)
    bits = 4 if forest.thresholds.dtype == np.float32 else 8
    nothing = np.array(np.nan, forest.thresholds.dtype)
    thresholds = np.where(is_leaf, nothing, forest.thresholds[source])
    nodes = np.empty((len(source), 2), np.int64)
    nodes[:, 0] = thresholds.view(f"i{bits}")
    nodes[:, 1] = np.where(
        is_leaf,
        own << 33 | _LEAF,
        first_child[source] << 33
        | forest.taken[source].astype(np.int64) << FEATURE_BITS
        | forest.features[source],
    )
    weights, target_of, leaf = _weights(forest, neutral)
    leaf_of = np.where(is_leaf & (source >= 0), leaf[source], 0)
    return ForestTables(nodes, trees, leaf_of.astype(np.int32), weights, target_of, max(1, levels))


def _weights(forest: Forest, neutral: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of weights and of their targets, and for each node which row is its own.

    Row 0 says nothing: that of padding, and of leaves without weights.
    """
    pairs = forest.weight_nodes.astype(np.int64) * forest.targets + forest.weight_targets
    told, which = np.unique(pairs, return_inverse=True)
    sums = np.zeros(len(told), forest.weights.dtype)
    np.add.at(sums, which, forest.weights)
    node, target = told // forest.targets, told % forest.targets
    leaves, row, count = np.unique(node, return_inverse=True, return_counts=True)
    entries = int(count.max(initial=1))
    weights = np.full((len(leaves) + 1, entries), neutral, sums.dtype)
    target_of = np.zeros(weights.shape, np.int32)
    # The first entry of each row begins where its node first occurs.
    column = np.arange(len(told)) - np.repeat(np.cumsum(count) - count, count)
    if entries == forest.targets:
        column = target
    weights[row + 1, column], target_of[row + 1, column] = sums, target
    leaf = np.zeros(len(forest.taken), np.int32)
    leaf[leaves] = 1 + np.arange(len(leaves))
    return weights, target_of, leaf
