"""Control flow of ONNX graphs, resolved while importing where that is possible.

A branch whose condition is known is taken, one that depends on data is computed on both
sides and selected (operators have no side effects), and loops of a known number of turns,
or of few turns at most, are unrolled. Branches of different shapes and all other loops are
run by the VM form (`dynamic_control`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import GraphProto, NodeProto
from tvm import relax, tirx
from tvm.ir import GenericConst

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.converters.constants import constant
from tinsmith.compiler.frontends.onnx.dynamic_control import DynamicControl

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.onnx.importer import GraphImporter

_UNROLL_LIMIT = 1024
# A loop of so many turns at most is unrolled although data may end it earlier.
_SELECT_LIMIT = 16


class _DependsOnDataError(Exception):
    """The loop cannot be unrolled."""


class ControlFlow:
    """Adds If, Loop and Scan nodes to the function that `importer` is building."""

    def __init__(self, importer: GraphImporter) -> None:
        self._importer = importer
        self._dynamic = DynamicControl(importer)

    def add(self, node: NodeProto) -> None:
        """Bind the outputs of `node` in the scope of the importer."""
        {"If": self._add_if, "Loop": self._add_loop, "Scan": self._add_scan}[node.op_type](node)

    def _add_if(self, node: NodeProto) -> None:
        importer = self._importer
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        if set(branches) != {"then_branch", "else_branch"}:
            raise ModelError(f"{importer.describe(node)}: a branch is missing")
        known = importer.constant(node.input[0])
        if known is not None:
            taken = branches["then_branch" if bool(known.reshape(-1)[0]) else "else_branch"]
            self._bind(node, self._run(taken, {}))
            return
        condition = importer.tensor(node.input[0], "condition")
        then_values = self._run(branches["then_branch"], {})
        else_values = self._run(branches["else_branch"], {})
        pairs = list(zip(then_values, else_values, strict=True))
        if not all(_selectable(first, second) for first, second in pairs):
            self._dynamic.branch(node, branches)
            return
        importer.notes.append(
            f"If node {node.name or node.output[0]!r} depends on data: both branches are computed"
        )
        scalar = importer.builder.emit(relax.op.reshape(condition, ()))
        self._bind(
            node,
            [
                importer.emit(relax.op.where(scalar, first, second), name)
                for name, (first, second) in zip(node.output, pairs, strict=True)
            ],
        )

    def _add_loop(self, node: NodeProto) -> None:
        importer = self._importer
        body = _body(node, importer)
        functions = dict(importer.functions)
        try:
            results = self._unrolled(node, body)
        except _DependsOnDataError:
            # What was unrolled so far is read by nothing.
            importer.functions = functions
            self._dynamic.loop(node, body)
            return
        self._bind(node, results)

    def _unrolled(self, node: NodeProto, body: GraphProto) -> list[relax.Expr]:
        """The results of a loop turn by turn.

        Where data decide whether a loop of few turns goes on, every turn is computed, and
        counts only as long as all conditions held.
        """
        importer = self._importer
        trips = importer.constant(node.input[0]) if node.input[0] else None
        has_condition = len(node.input) > 1 and bool(node.input[1])
        condition: relax.Expr = constant(np.array(True))
        if has_condition:
            condition = importer.tensor(node.input[1], "condition")
        limit = int(trips.reshape(-1)[0]) if trips is not None else _UNROLL_LIMIT + 1
        if (node.input[0] and trips is None) or (trips is not None and limit > _UNROLL_LIMIT):
            raise _DependsOnDataError
        state = [importer.values[name] for name in node.input[2:]]
        scanned: list[list[relax.Expr]] = [[] for _ in body.output[1 + len(state) :]]
        goes_on: relax.Expr | None = None
        names = [value.name for value in body.input]
        for turn in range(limit):
            if isinstance(condition, GenericConst):
                if not bool(condition.value.numpy().reshape(-1)[0]):
                    break
            elif scanned or limit > _SELECT_LIMIT:
                raise _DependsOnDataError
            else:
                held = importer.builder.emit(relax.op.reshape(condition, ()))
                goes_on = (
                    held
                    if goes_on is None
                    else importer.builder.emit(relax.op.logical_and(goes_on, held))
                )
            if turn == _UNROLL_LIMIT:
                raise _DependsOnDataError
            first = [constant(np.array(turn, np.int64)), constant(np.array(True))]
            results = self._run(body, dict(zip(names, [*first, *state], strict=True)))
            condition = results[0]
            state = [
                self._selected(goes_on, new, old)
                for new, old in zip(results[1 : 1 + len(state)], state, strict=True)
            ]
            for values, value in zip(scanned, results[1 + len(state) :], strict=True):
                values.append(value)
        if any(not values for values in scanned):
            raise _DependsOnDataError
        return [*state, *(self._stack(node, values, 0) for values in scanned)]

    def _selected(self, condition: relax.Expr | None, new: relax.Expr, old: relax.Expr) -> Any:
        """The new state where the loop went on, else the old one."""
        if condition is None:
            return new
        if not _selectable(new, old):
            raise _DependsOnDataError
        return self._importer.builder.emit(relax.op.where(condition, new, old))

    def _add_scan(self, node: NodeProto) -> None:
        importer = self._importer
        if importer.opset < 9:
            raise ModelError(f"{importer.describe(node)}: Scan before operator set 9")
        body = _body(node, importer)
        ints = {a.name: list(a.ints) for a in node.attribute if a.ints}
        scan_count = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
        state_count = len(node.input) - scan_count
        outputs = len(body.output) - state_count
        state = [importer.values[name] for name in node.input[:state_count]]
        sources = [importer.tensor(name, "scan input") for name in node.input[state_count:]]
        axes = ints.get("scan_input_axes", [0] * scan_count)
        backward = ints.get("scan_input_directions", [0] * scan_count)
        lengths = {source.ty.shape[axis] for source, axis in zip(sources, axes, strict=True)}
        if not all(isinstance(extent, tirx.IntImm) for extent in lengths):
            self._dynamic.scan(node, body, scan_count, ints)
            return
        if len({int(extent) for extent in lengths}) != 1:
            raise ModelError(f"{importer.describe(node)}: the scan inputs differ in length")
        length = int(lengths.pop())
        if not 0 < length <= _UNROLL_LIMIT:
            self._dynamic.scan(node, body, scan_count, ints)
            return
        scanned: list[list[relax.Expr]] = [[] for _ in range(outputs)]
        names = [value.name for value in body.input]
        for turn in range(length):
            slices = [
                self._slice(source, axis, length - 1 - turn if reverse else turn)
                for source, axis, reverse in zip(sources, axes, backward, strict=True)
            ]
            results = self._run(body, dict(zip(names, [*state, *slices], strict=True)))
            state = results[:state_count]
            for values, value in zip(scanned, results[state_count:], strict=True):
                values.append(value)
        output_axes = ints.get("scan_output_axes", [0] * outputs)
        flipped = ints.get("scan_output_directions", [0] * outputs)
        stacked = [
            self._stack(node, values[::-1] if flip else values, axis)
            for values, axis, flip in zip(scanned, output_axes, flipped, strict=True)
        ]
        self._bind(node, [*state, *stacked])

    def _run(self, graph: GraphProto, arguments: dict[str, relax.Expr]) -> list[relax.Expr]:
        """Outputs of `graph` in a scope of its own inside the current one."""
        importer = self._importer
        outer = importer.values
        importer.values = {**outer, **arguments}
        try:
            importer.add_graph(graph)
            return [self._result(output.name) for output in graph.output]
        finally:
            importer.values = outer

    def _result(self, name: str) -> relax.Expr:
        """A result of a subgraph: a tensor, or a sequence as a tuple."""
        value = self._importer.values.get(name)
        if isinstance(value, relax.Tuple) or name in self._importer.dynamic.sequences:
            return value
        if value is not None and not isinstance(value, relax.Expr):
            raise ModelError(
                f"{self._importer.source}: whether the optional {name!r} holds a value depends on "
                "data; bind the input that decides it to a constant"
            )
        return self._importer.tensor(name, "subgraph output")

    def _slice(self, source: relax.Expr, axis: int, index: int) -> relax.Expr:
        position = constant(np.array(index, np.int64))
        return self._importer.builder.emit(relax.op.take(source, position, axis=axis, mode="clip"))

    def _stack(self, node: NodeProto, values: list[relax.Expr], axis: int) -> relax.Expr:
        if not values:
            raise ModelError(f"{self._importer.describe(node)}: a loop without a single turn")
        builder = self._importer.builder
        rows = [builder.emit(relax.op.expand_dims(value, axis)) for value in values]
        return builder.emit(relax.op.concat(rows, axis=axis)) if len(rows) > 1 else rows[0]

    def _bind(self, node: NodeProto, results: list[relax.Expr]) -> None:
        for name, value in zip(node.output, results, strict=True):
            if name:
                self._importer.values[name] = value


def _body(node: NodeProto, importer: GraphImporter) -> GraphProto:
    for attribute in node.attribute:
        if attribute.name == "body":
            return attribute.g
    raise ModelError(f"{importer.describe(node)}: it has no body")


def _selectable(first: relax.Expr, second: relax.Expr) -> bool:
    """Whether a kernel can select one of two values: tensors of one type."""
    return isinstance(first.ty, relax.TensorType) and str(first.ty) == str(second.ty)
