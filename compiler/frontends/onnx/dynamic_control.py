"""Loops and branches that only the data decide: functions of their own, called at run time.

The body of a Loop or Scan and both branches of an If become functions beside `main`, lowered
to the same kernels; `tinsmith.loop`, `tinsmith.scan` and `tinsmith.branch`, which the VM form
provides (see `tinsmith.compiler.module.vm_functions`), call them by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import GraphProto, NodeProto, TypeProto
from tvm import relax, tirx
from tvm.ir import GenericConst, StringImm

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.dynamic import free_names
from tinsmith.compiler.frontends.onnx.kinds import (
    Kind,
    NotCompiledError,
    any_elements,
    counter_shape,
    dtype_of,
    loose_type,
    open_static,
    rank_of,
    relax_type,
    row_description,
    row_type,
    same_kind,
    slice_type,
    tensor_kind,
    tensor_type_of,
)
from tinsmith.compiler.frontends.onnx.loop_bodies import LoopBodies

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.onnx.importer import GraphImporter

LOOP, SCAN, BRANCH = "tinsmith.loop", "tinsmith.scan", "tinsmith.branch"

# The types of the states are widened until the body keeps them, at most so often.
_ATTEMPTS = 5


@dataclass(frozen=True)
class _Body:
    """The function of a body, and one for the first turn if its states are of other types.

    `states` are the types of the states after all turns, `rows` those of what a turn gives.
    """

    function: str
    first: str | None
    states: list[Kind]
    rows: list[relax.TensorType]


class DynamicControl:
    """Adds If and Loop nodes that depend on data to the function that `importer` is building."""

    def __init__(self, importer: GraphImporter) -> None:
        self._importer = importer
        self._bodies = LoopBodies(importer)
        self._count = 0

    def branch(self, node: NodeProto, branches: Mapping[str, GraphProto]) -> None:
        """An If whose branches differ in shape: one of them is run."""
        importer = self._importer
        captured, before = self._captured(*branches.values()), dict(importer.functions)
        try:
            functions, kinds = [], []
            for key in ("then_branch", "else_branch"):
                name, results = self._function(branches[key], {}, captured)
                functions.append(name)
                kinds.append(results)
            shapes = [self._joined(first, second) for first, second in zip(*kinds, strict=True)]
        except NotCompiledError as reason:
            self._evaluate(node, before, reason)
            return
        condition = importer.tensor(node.input[0], "condition")
        text = json.dumps({"then": functions[0], "else": functions[1]})
        arguments = [StringImm(text), condition, *(importer.values[name] for name in captured)]
        self._bind(node, BRANCH, arguments, shapes)

    def loop(self, node: NodeProto, body: GraphProto) -> None:
        """A Loop of a number of turns that is not known."""
        node, body = self._bodies.without_unchanged(node, body, 2, 1)
        if not any(node.output):
            return
        with self._bodies.computed_once(node, body) as rest:
            self._bodies.check_end(node, rest)
            self._add_loop(node, rest)

    def _add_loop(self, node: NodeProto, body: GraphProto) -> None:
        importer = self._importer
        initial = list(node.input[2:])
        captured, before = self._captured(body), dict(importer.functions)
        shapes = [counter_shape(value.type.tensor_type) for value in body.input[:2]]
        try:
            states = [self._kind(name) for name in initial]
            counters = [
                relax.TensorType(shape, dtype)
                for shape, dtype in zip(shapes, ("int64", "bool"), strict=True)
            ]
            made = self._body(body, counters, states, (), captured, self._has_a_turn(node))
        except NotCompiledError as reason:
            self._evaluate(node, before, reason)
            return
        has = [position < len(node.input) and bool(node.input[position]) for position in (0, 1)]
        text = json.dumps(
            {
                "body": made.function,
                "first": made.first,
                "limited": has[0],
                "conditional": has[1],
                "states": len(states),
                "ranks": [len(shape) for shape in shapes],
                "scans": _described(made.rows, body),
            }
        )
        given = [name for name, there in zip(node.input[:2], has, strict=False) if there]
        arguments = [
            StringImm(text),
            *(importer.tensor(name, "loop input") for name in given),
            *(self._argument(name) for name in (*initial, *captured)),
        ]
        self._bind(node, LOOP, arguments, [*made.states, *(row_type(kind) for kind in made.rows)])

    def _has_a_turn(self, node: NodeProto) -> bool:
        """Whether it is known that a Loop has at least one turn."""
        values = [self._importer.constant(name) for name in node.input[:2] if name]
        return all(value is not None and bool(value.reshape(-1)[0] > 0) for value in values)

    def _evaluate(
        self, node: NodeProto, functions: Mapping[str, relax.Function], reason: Exception
    ) -> None:
        """Call the node as it is; of the functions only those made before it are kept."""
        self._importer.functions = dict(functions)
        try:
            self._importer.dynamic.evaluate(node)
        except ModelError as error:
            raise ModelError(f"{error} ({reason})") from error

    def scan(
        self, node: NodeProto, body: GraphProto, sliced: int, attributes: Mapping[str, list[int]]
    ) -> None:
        """A Scan of a length that is not known, or is too long to be unrolled."""
        with self._bodies.computed_once(node, body) as rest:
            self._add_scan(node, rest, sliced, attributes)

    def _add_scan(
        self, node: NodeProto, body: GraphProto, sliced: int, attributes: Mapping[str, list[int]]
    ) -> None:
        importer = self._importer
        count = len(node.input) - sliced
        captured, before = self._captured(body), dict(importer.functions)
        axes = attributes.get("scan_input_axes", [0] * sliced)
        try:
            states = [self._kind(name) for name in node.input[:count]]
            sources = [tensor_type_of(importer.values[name]) for name in node.input[count:]]
            slices = [slice_type(kind, axis) for kind, axis in zip(sources, axes, strict=True)]
            made = self._body(body, (), states, slices, captured, False)
        except NotCompiledError as reason:
            self._evaluate(node, before, reason)
            return
        out_axes = attributes.get("scan_output_axes", [0] * len(made.rows))
        text = json.dumps(
            {
                "body": made.function,
                "first": made.first,
                "states": count,
                "axes": axes,
                "backward": attributes.get("scan_input_directions", [0] * sliced),
                "scans": _described(made.rows, body),
                "scan_axes": out_axes,
                "scan_backward": attributes.get("scan_output_directions", [0] * len(made.rows)),
            }
        )
        arguments = [StringImm(text), *(self._argument(n) for n in (*node.input, *captured))]
        stacks = [row_type(kind, axis) for kind, axis in zip(made.rows, out_axes, strict=True)]
        self._bind(node, SCAN, arguments, [*made.states, *stacks])

    def _body(
        self,
        body: GraphProto,
        counters: Sequence[relax.TensorType],
        states: Sequence[Kind],
        slices: Sequence[relax.TensorType],
        captured: Sequence[str],
        has_a_turn: bool,
    ) -> _Body:
        """The function of a body, whose states are opened up until it keeps their types.

        Where a state has another rank after the first turn, that turn gets a function of its own.
        """
        names = [value.name for value in body.input]
        # A body with a counter has a condition as its first result.
        begin = 1 if counters else 0
        end = begin + len(states)
        first: str | None = None
        initial, first_rows = list(states), None
        for _ in range(_ATTEMPTS):
            # Parameters need their own names for open extents.
            own = [self._renamed(kind) for kind in (*states, *slices)]
            parameters = dict(zip(names, [*counters, *own], strict=True))
            name, results = self._function(body, parameters, captured)
            after, rows = results[begin:end], [tensor_kind(kind) for kind in results[end:]]
            if any(dtype_of(a) != dtype_of(b) for a, b in zip(states, after, strict=True)):
                raise NotCompiledError("a state changes its dtype")
            joined = [self._joined(a, b) for a, b in zip(states, after, strict=True)]
            if all(same_kind(a, b) for a, b in zip(states, joined, strict=True)):
                if first_rows is not None:
                    rows = [self._joined(a, b) for a, b in zip(first_rows, rows, strict=True)]
                if not has_a_turn:
                    joined = [self._joined(a, b) for a, b in zip(initial, joined, strict=True)]
                return _Body(name, first, joined, rows)
            if first is None and any(
                rank_of(a) != rank_of(b) for a, b in zip(states, after, strict=True)
            ):
                first, first_rows, states = name, rows, after
            else:
                del self._importer.functions[name]
                states = joined
        raise NotCompiledError("a state changes its shape in too many ways")

    def _function(
        self, graph: GraphProto, parameters: Mapping[str, Kind], captured: Sequence[str]
    ) -> tuple[str, list[Kind]]:
        """A new function of `graph` and the types of its results.

        It takes `parameters` and after them the values `captured` from around it.
        """
        importer = self._importer
        self._count += 1
        name = f"subgraph_{self._count}"
        # A parameter hides what has its name around the function.
        kinds = {outer: self._renamed(self._kind(outer)) for outer in captured} | {**parameters}
        order = [*parameters, *captured]
        variables = {
            key: relax.Var(importer.fresh_name(key), relax_type(kind))
            for key, kind in kinds.items()
        }
        known = {
            key: value for key, value in importer.values.items() if isinstance(value, GenericConst)
        }
        sequences = importer.dynamic.sequences
        importer.dynamic.sequences = {
            key: kind for key, kind in kinds.items() if isinstance(kind, TypeProto)
        }
        outer_builder, outer_values = importer.builder, importer.values
        importer.builder = builder = relax.BlockBuilder()
        importer.values = {**known, **variables}
        try:
            with builder.function(name, [variables[key] for key in order]):
                try:
                    with builder.dataflow():
                        importer.add_graph(graph)
                        types = [self._kind(o.name) for o in graph.output]
                        bound = [builder.emit(self._argument(o.name)) for o in graph.output]
                        result = builder.emit_output(relax.Tuple(bound))
                except BaseException:
                    builder._end_block()
                    raise
                builder.emit_func_output(result)
            function = builder.get()[name]
        except ModelError as error:
            raise NotCompiledError(str(error)) from error
        finally:
            importer.builder, importer.values = outer_builder, outer_values
            importer.dynamic.sequences = sequences
        importer.functions[name] = function
        return name, types

    def _captured(self, *graphs: GraphProto) -> list[str]:
        """Values around the node that its subgraphs read; constants go into the functions."""
        values = self._importer.values
        names = sorted(set().union(*(free_names(graph) for graph in graphs)) & set(values))
        return [name for name in names if not isinstance(values[name], GenericConst)]

    def _kind(self, name: str) -> Kind:
        """The type of the value `name`. Raises NotCompiledError if it has none that is known."""
        value = self._importer.values.get(name)
        if isinstance(value, relax.Tuple) or name in self._importer.dynamic.sequences:
            kind = self._importer.dynamic.type_of(name, value)
            if not kind.HasField("sequence_type"):
                raise NotCompiledError(f"{name!r} is an optional")
            return kind
        if value is None:
            raise ModelError(
                f"{self._importer.source}: subgraph output {name!r} is produced by no node"
            )
        if isinstance(value, relax.ShapeExpr):
            return relax.TensorType([len(value.values)], "int64")
        return tensor_type_of(value)

    def _argument(self, name: str) -> relax.Expr:
        """The value `name` as it is handed to a function."""
        value = self._importer.values[name]
        if isinstance(value, relax.Tuple) or name in self._importer.dynamic.sequences:
            return value
        return self._importer.tensor(name, "what a subgraph reads or gives")

    def _renamed(self, kind: Kind) -> Kind:
        """The same type with new names for open extents."""
        if isinstance(kind, TypeProto) or not isinstance(kind.shape, relax.ShapeExpr):
            return kind
        names: dict[Any, tirx.Var] = {}
        extents = [
            extent
            if isinstance(extent, tirx.IntImm)
            else names.setdefault(extent, self._importer.dynamic.fresh_extent())
            for extent in kind.shape.values
        ]
        return relax.TensorType(extents, str(kind.dtype))

    def _joined(self, first: Kind, second: Kind) -> Kind:
        """The type of a value that is of the first or the second type."""
        if dtype_of(first) != dtype_of(second):
            raise NotCompiledError(
                f"the results are of different types, {dtype_of(first)} and {dtype_of(second)}"
            )
        if isinstance(first, TypeProto) or isinstance(second, TypeProto):
            return first if same_kind(first, second) else any_elements(first)
        if first.ndim != second.ndim or first.ndim < 0:
            return relax.TensorType(dtype=str(first.dtype), ndim=-1)
        pairs = zip(open_static(first), open_static(second), strict=True)
        extents = [
            a if a == b and a is not None else self._importer.dynamic.fresh_extent()
            for a, b in pairs
        ]
        return relax.TensorType(extents, str(first.dtype))

    def _bind(
        self,
        node: NodeProto,
        function: str,
        arguments: Sequence[Any],
        kinds: Sequence[Kind],
    ) -> None:
        importer = self._importer
        loose = [loose_type(kind) for kind in kinds]
        label = next(filter(None, node.output), "value")
        results = importer.dynamic.call(function, arguments, loose, label)
        for name, kind, result in zip(node.output, kinds, results, strict=False):
            if not name:
                continue
            if isinstance(kind, TypeProto):
                importer.dynamic.sequences[name] = kind
                importer.values[name] = result
            else:
                shape = None if kind.ndim < 0 else open_static(kind)
                importer.values[name] = importer.dynamic.named_extents(result, shape, name)
        importer.notes.append(
            f"{node.op_type} node {node.name or label!r} depends on data: "
            f"{'one branch is run' if node.op_type == 'If' else 'its turns are run one by one'}"
        )


def _described(rows: Sequence[relax.TensorType], body: GraphProto) -> list[dict[str, Any]]:
    """What is known of the rows of a body's last outputs before there is one."""
    declared = list(body.output)[len(body.output) - len(rows) :]
    return [row_description(kind, value.type) for kind, value in zip(rows, declared, strict=True)]
