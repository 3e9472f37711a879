"""The walk through all trees of an ensemble as one TensorIR function.

Each step of a walk waits for the one before it: a node is loaded, then the feature that it asks
for, and only then is the next node known. So `LANES` walks go side by side, those of as many rows
through one tree or, where there are fewer rows, those of one row through as many trees. A step has
no branch: a node's children are neighbours, and the comparison is added to the place of the first.
A leaf leads to itself, and the walks end together when all have come to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import PrimType
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.operators.forest_tables import (
    ABSENT,
    EQUAL,
    FEATURE_BITS,
    GREATER,
    LESS,
    NO_NUMBER,
)
from tinsmith.targets.template import TEMPLATE_ATTRIBUTE, WORKLOAD_ATTRIBUTE

LANES = 8
_OPAQUE = 8  # Relax's kOpaque: never fused with its neighbours
# Rough operations of one step, which decide about threads; a task should be worth handing out.
_STEP_OPERATIONS = 16
_STEPS_OF_A_TASK = 4096
_MOST_TASKS = 16
_COMPARE: dict[int, Callable[[Any, Any], Any]] = {
    LESS: lambda x, t: x < t,
    LESS | EQUAL: lambda x, t: x <= t,
    GREATER: lambda x, t: x > t,
    GREATER | EQUAL: lambda x, t: x >= t,
    EQUAL: tirx.EQ,
}


@dataclass(frozen=True)
class ForestWorkload:
    """Everything that decides what the kernel looks like.

    `trees` counts those in the tables, a multiple of `LANES`; `levels` is the length of a typical
    way. `outcomes` are the kinds of branches (see `forest_tables`). A leaf has `entries` weights,
    which are those of all targets if there are as many. `combine` is `sum`, `min` or `max`.
    """

    rows: int
    features: int
    trees: int
    levels: int
    nodes: int
    leaves: int
    entries: int
    targets: int
    dtype: str
    outcomes: frozenset[int]
    combine: str

    @property
    def row_lanes(self) -> int:
        """The rows that are walked side by side."""
        return LANES if self.rows >= LANES else 1

    @property
    def groups(self) -> int:
        """The groups of `row_lanes` rows; the last one may overlap the one before."""
        return -(-self.rows // self.row_lanes)

    @property
    def chunks(self) -> int:
        """The parts of the forest that are walked, and combined, by themselves."""
        wanted = min(_MOST_TASKS // self.groups, self.trees * self.levels // _STEPS_OF_A_TASK)
        return max(1, min(wanted, self.trees // LANES))


class ForestKernel:
    """Builds the function for one workload.

    x (rows, features), nodes (nodes, 2) int64, leaf_of (nodes) int32, weights (leaves, entries),
    target_of (leaves, entries) int32 unless a leaf tells of every target
    -> combined (rows, chunks, targets). A place is the position of a node's first number.
    """

    def __init__(self, workload: ForestWorkload) -> None:
        w = self.workload = workload
        self.x = tirx.decl_buffer((w.rows, w.features), w.dtype, "x")
        self.nodes = tirx.decl_buffer((w.nodes, 2), "int64", "nodes")
        self.leaf_of = tirx.decl_buffer((w.nodes,), "int32", "leaf_of")
        self.weights = tirx.decl_buffer((w.leaves, w.entries), w.dtype, "weights")
        self.target_of = tirx.decl_buffer((w.leaves, w.entries), "int32", "target_of")
        self.combined = tirx.decl_buffer((w.rows, w.chunks, w.targets), w.dtype, "combined")
        self.place = loops.local_buffer("place", (LANES,), "int64")
        self.ended = loops.local_buffer("ended", (1,), "int32")
        self.gap = loops.local_buffer("gap", (1,), "int32")
        self.score = loops.local_buffer("score", (w.row_lanes, w.targets), w.dtype)

    def function(self) -> PrimFunc:
        """The finished loops, marked for the template that takes them as they are."""
        w = self.workload
        sparse = [self.target_of] if w.entries < w.targets else []
        tables = [self.nodes, self.leaf_of, self.weights, *sparse]
        steps = w.rows * w.trees * w.levels
        body = loops.tasks(
            w.groups * w.chunks,
            steps * _STEP_OPERATIONS,
            0,
            lambda task: self._task(task // w.chunks, task % w.chunks),
        )
        return PrimFunc([self.x, *tables, self.combined], body).with_attrs(
            {
                "tirx.noalias": True,
                "op_pattern": _OPAQUE,
                TEMPLATE_ATTRIBUTE: "forest",
                WORKLOAD_ATTRIBUTE: f"rows={w.rows} trees={w.trees} levels={w.levels}",
            }
        )

    def _task(self, group: Any, chunk: Any) -> Stmt:
        """What a part of the forest says of a group of rows."""
        w = self.workload
        row = tirx.Var("row", PrimType("int32"))
        first_row = tirx.min(group * w.row_lanes, loops.index(w.rows - w.row_lanes))
        # Parts of whole groups of lanes, as equal as they can be.
        blocks = w.trees // LANES
        per_block = LANES if w.row_lanes == 1 else 1
        first, last = (
            (chunk + shift) * blocks // w.chunks * (LANES // per_block) for shift in (0, 1)
        )

        def over_scores(body: Callable[[Any, Any], Stmt]) -> Stmt:
            return loops.serial(
                "lane",
                w.row_lanes,
                lambda lane: loops.serial("target", w.targets, lambda t: body(lane, t)),
            )

        def publish(lane: Any, t: Any) -> Stmt:
            done = loops.store(
                self.combined, (row + lane, chunk, t), loops.load(self.score, lane, t)
            )
            if w.rows % w.row_lanes == 0:
                return done
            # Rows that the group before has too are its own to store: tasks run at once.
            return tirx.IfThenElse(row + lane >= group * w.row_lanes, done, None)

        def over_trees(gaps: bool) -> Stmt:
            number = tirx.Var("number", PrimType("int32"))
            body = self._walk(row, number * per_block, gaps)
            return tirx.For(number, first, last - first, tirx.ForKind.SERIAL, body)

        # Rows without gaps, nearly all, need not be asked for them at every node.
        gap = loops.load(self.gap, 0)
        kind = _kind(w.outcomes)
        either = [
            loops.store(self.gap, (0,), loops.index(0)),
            loops.serial(
                "lane",
                w.row_lanes,
                lambda lane: loops.serial(
                    "feature",
                    w.features,
                    lambda f: loops.store(
                        self.gap, (0,), gap | _number(tirx.isnan(loops.load(self.x, row + lane, f)))
                    ),
                ),
            ),
            tirx.IfThenElse(gap > 0, over_trees(True), over_trees(False)),
        ]
        return loops.allocate(
            [self.place, self.ended, self.gap, self.score],
            loops.sequence(
                [
                    tirx.Bind(row, first_row),
                    over_scores(lambda lane, t: loops.store(self.score, (lane, t), self._start())),
                    *([over_trees(True)] if w.outcomes <= {kind} or kind is None else either),
                    over_scores(publish),
                ]
            ),
        )

    def _start(self) -> Any:
        dtype = self.workload.dtype
        return {
            "sum": tirx.const(0.0, dtype),
            "min": tirx.const(float("inf"), dtype),
            "max": tirx.const(float("-inf"), dtype),
        }[self.workload.combine]

    def _walk(self, row: Any, tree: Any, gaps: bool) -> Stmt:
        """`LANES` walks from root to leaf, and what the leaves say."""
        rows_differ = self.workload.row_lanes > 1
        lanes = range(LANES)

        def root(lane: int) -> Any:
            number = tree if rows_differ else tree + lane
            return tirx.Cast("int64", number * 2)

        steps = [self._step(lane, row + lane if rows_differ else row, gaps) for lane in lanes]
        return loops.sequence(
            [
                *(loops.store(self.place, (lane,), root(lane)) for lane in lanes),
                loops.store(self.ended, (0,), loops.index(0)),
                tirx.While(
                    loops.load(self.ended, 0) >= 0,
                    loops.sequence([loops.store(self.ended, (0,), loops.index(-1)), *steps]),
                ),
                *(self._listen(lane, lane if rows_differ else 0) for lane in lanes),
            ]
        )

    def _step(self, lane: int, row: Any, gaps: bool) -> Stmt:
        """One walk goes on from a node to a child."""
        w = self.workload
        place, link = (tirx.Var(name, PrimType("int64")) for name in ("place", "link"))
        threshold, value = (tirx.Var(name, PrimType(w.dtype)) for name in ("threshold", "value"))
        bits = _at(self.nodes, place)
        if w.dtype == "float32":
            bits = tirx.Cast("int32", bits)
        # Sixteen bits are read without a mask.
        feature = link & _long((1 << (16 if w.features <= 1 << 16 else FEATURE_BITS)) - 1)
        start = tirx.Cast("int64", row) * _long(w.features)
        goes = self._goes(value, threshold, link, gaps)
        return loops.sequence(
            [
                tirx.Bind(place, loops.load(self.place, lane)),
                tirx.Bind(link, _at(self.nodes, place + _long(1))),
                tirx.Bind(threshold, tirx.reinterpret(w.dtype, bits)),
                tirx.Bind(value, _at(self.x, start + feature)),
                loops.store(self.place, (lane,), (link >> _long(32)) + goes * _long(2)),
                # The sign of the lower half tells a leaf.
                loops.store(self.ended, (0,), loops.load(self.ended, 0) & tirx.Cast("int32", link)),
            ]
        )

    def _goes(self, value: Any, threshold: Any, link: Any, gaps: bool) -> Any:
        """1 where the branch is taken, else 0; without `gaps`, `value` is a number."""
        outcomes = self.workload.outcomes

        def told(which: int) -> Any:
            return (link >> _long(FEATURE_BITS + which.bit_length() - 1)) & _long(1)

        absent = _number(tirx.isnan(value), "int64")
        kind = _kind(outcomes)
        if kind is not None:
            goes = _number(_COMPARE[kind](value, threshold), "int64")
            return goes if outcomes <= {kind} or not gaps else goes | (absent & told(ABSENT))
        return (
            (_number(value < threshold, "int64") & told(LESS))
            | (_number(tirx.EQ(value, threshold), "int64") & told(EQUAL))
            | (_number(value > threshold, "int64") & told(GREATER))
            | (absent & told(ABSENT))
            | (_number(tirx.isnan(threshold), "int64") & told(NO_NUMBER))
        )

    def _listen(self, lane: int, scores: int) -> Stmt:
        """The weights of the leaf to which one walk came."""
        w = self.workload
        leaf = tirx.Var("leaf", PrimType("int32"))
        combine = {"sum": lambda a, b: a + b, "min": tirx.min, "max": tirx.max}[w.combine]

        def entry(k: Any) -> Stmt:
            target = k if w.entries == w.targets else loops.load(self.target_of, leaf, k)
            old, new = loops.load(self.score, scores, target), loops.load(self.weights, leaf, k)
            return loops.store(self.score, (scores, target), combine(old, new))

        came = loops.load(
            self.leaf_of, tirx.Cast("int32", loops.load(self.place, lane) >> _long(1))
        )
        return loops.sequence([tirx.Bind(leaf, came), loops.serial("entry", w.entries, entry)])


def _kind(outcomes: frozenset[int]) -> int | None:
    """The one comparison of all branches, if they differ in nothing but what absence means."""
    kinds = {outcome & ~ABSENT for outcome in outcomes} or {LESS}
    return min(kinds) if len(kinds) == 1 and kinds <= set(_COMPARE) else None


def _long(value: int) -> Any:
    return tirx.const(value, "int64")


def _number(truth: Any, dtype: str = "int32") -> Any:
    """1 or 0."""
    return tirx.Cast(dtype, truth)


def _at(buffer: Any, position: Any) -> Any:
    """The element of a matrix at a `position` in int64 of all its elements."""
    return tirx.BufferLoad(buffer, [_long(0), position])


def forest_kernel(workload: ForestWorkload) -> PrimFunc:
    """The function for `workload`; `ForestKernel` lists its parameters."""
    return ForestKernel(workload).function()
