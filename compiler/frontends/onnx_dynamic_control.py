"""Loops and branches that only the data decide: functions of their own, called at run time.

The body of a Loop or Scan and both branches of an If become functions beside `main`, lowered
to the same kernels; `tinsmith.loop`, `tinsmith.scan` and `tinsmith.branch`, which the VM form
provides (see `compiler.module.vm_functions`), call them by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from onnx import GraphProto, NodeProto, TypeProto
from tvm import relax, tirx
from tvm.ir import GenericConst, StringImm

from compiler.errors import ModelError
from compiler.frontends.onnx_dynamic import free_names

if TYPE_CHECKING:
    from compiler.frontends.onnx_importer import GraphImporter

LOOP, SCAN, BRANCH = "tinsmith.loop", "tinsmith.scan", "tinsmith.branch"

# The types of the states are widened until the body keeps them, at most so often.
_ATTEMPTS = 5

# They give something else in every turn.
_RANDOM = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip

# A tensor, or a sequence of tensors of the type that ONNX tells.
Kind: TypeAlias = relax.TensorType | TypeProto


class NotCompiledError(Exception):
    """A subgraph cannot become a function; carries the reason."""


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
        node, body = self._without_unchanged(node, body, 2, 1)
        if not any(node.output):
            return
        with self._computed_once(node, body) as rest:
            self._add_loop(node, rest)

    def _add_loop(self, node: NodeProto, body: GraphProto) -> None:
        importer = self._importer
        initial = list(node.input[2:])
        captured, before = self._captured(body), dict(importer.functions)
        shapes = [_shape(value.type.tensor_type) for value in body.input[:2]]
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
                "scans": [_row(kind) for kind in made.rows],
            }
        )
        given = [name for name, there in zip(node.input[:2], has, strict=False) if there]
        arguments = [
            StringImm(text),
            *(importer.tensor(name, "loop input") for name in given),
            *(self._argument(name) for name in (*initial, *captured)),
        ]
        self._bind(node, LOOP, arguments, [*made.states, *(_row_type(kind) for kind in made.rows)])

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
        with self._computed_once(node, body) as rest:
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
            sources = [_tensor_type(importer.values[name]) for name in node.input[count:]]
            slices = [_slice_type(kind, axis) for kind, axis in zip(sources, axes, strict=True)]
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
                "scans": [_row(kind) for kind in made.rows],
                "scan_axes": out_axes,
                "scan_backward": attributes.get("scan_output_directions", [0] * len(made.rows)),
            }
        )
        arguments = [StringImm(text), *(self._argument(n) for n in (*node.input, *captured))]
        stacks = [_row_type(kind, axis) for kind, axis in zip(made.rows, out_axes, strict=True)]
        self._bind(node, SCAN, arguments, [*made.states, *stacks])

    def _without_unchanged(
        self, node: NodeProto, body: GraphProto, inputs: int, outputs: int
    ) -> tuple[NodeProto, GraphProto]:
        """Node and body without the states that the body hands on as they are.

        The body reads them from around it, where weights are constants that kernels can pack.
        `inputs` and `outputs` of the body come before its states.
        """
        same = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
        values, inside = self._importer.values, _names_inside(body)
        kept, kept_body, aliases = NodeProto(), GraphProto(), []
        kept.CopyFrom(node)
        kept_body.CopyFrom(body)
        for place in reversed(range(len(node.input) - inputs)):
            outer, own = node.input[inputs + place], body.input[inputs + place].name
            result = body.output[outputs + place].name
            while result in same and result != own:
                result = same[result]
            if result != own or (outer != own and outer in inside):
                continue
            if outer != own:
                aliases.append(NodeProto(op_type="Identity", input=[outer], output=[own]))
            if place < len(node.output):
                if node.output[place]:
                    values[node.output[place]] = values[outer]
                del kept.output[place]
            del kept.input[inputs + place]
            del kept_body.input[inputs + place], kept_body.output[outputs + place]
        own_nodes = list(kept_body.node)
        del kept_body.node[:]
        kept_body.node.extend([*aliases, *own_nodes])
        return kept, kept_body

    @contextmanager
    def _computed_once(self, node: NodeProto, body: GraphProto) -> Iterator[GraphProto]:
        """The body of a loop without what is the same in every turn, which is computed before it.

        Only kernels go before it: what is evaluated may fail, and a loop without a turn must not.
        """
        importer, outer = self._importer, self._importer.values
        importer.values = dict(outer)
        changing = {value.name for value in body.input} | {t.name for t in body.initializer}
        rest = []
        try:
            for inner in body.node:
                if changing.intersection(inner.input) or not self._is_a_kernel(inner):
                    changing.update(inner.output)
                    rest.append(inner)
                else:
                    importer.add_node(inner)
            kept = GraphProto()
            kept.CopyFrom(body)
            del kept.node[:]
            kept.node.extend(rest)
            yield kept
            outer.update((name, importer.values[name]) for name in node.output if name)
        finally:
            importer.values = outer

    def _is_a_kernel(self, node: NodeProto) -> bool:
        """Whether a node is translated and depends on nothing but its inputs."""
        if node.op_type in _RANDOM or any(a.HasField("g") or a.graphs for a in node.attribute):
            return False
        return not self._importer.dynamic.concerns(node)

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
            after, rows = results[begin:end], [_tensor_kind(kind) for kind in results[end:]]
            if any(_dtype(a) != _dtype(b) for a, b in zip(states, after, strict=True)):
                raise NotCompiledError("a state changes its dtype")
            joined = [self._joined(a, b) for a, b in zip(states, after, strict=True)]
            if all(_same(a, b) for a, b in zip(states, joined, strict=True)):
                if first_rows is not None:
                    rows = [self._joined(a, b) for a, b in zip(first_rows, rows, strict=True)]
                if not has_a_turn:
                    joined = [self._joined(a, b) for a, b in zip(initial, joined, strict=True)]
                return _Body(name, first, joined, rows)
            if first is None and any(
                _rank(a) != _rank(b) for a, b in zip(states, after, strict=True)
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
            key: relax.Var(importer.fresh_name(key), _relax_type(kind))
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
        return _tensor_type(value)

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
        if _dtype(first) != _dtype(second):
            raise NotCompiledError(
                f"the results are of different types, {_dtype(first)} and {_dtype(second)}"
            )
        if isinstance(first, TypeProto) or isinstance(second, TypeProto):
            return first if _same(first, second) else _any_elements(first)
        if first.ndim != second.ndim or first.ndim < 0:
            return relax.TensorType(dtype=str(first.dtype), ndim=-1)
        pairs = zip(_open_static(first), _open_static(second), strict=True)
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
        loose = [_loose_type(kind) for kind in kinds]
        label = next(filter(None, node.output), "value")
        results = importer.dynamic.call(function, arguments, loose, label)
        for name, kind, result in zip(node.output, kinds, results, strict=False):
            if not name:
                continue
            if isinstance(kind, TypeProto):
                importer.dynamic.sequences[name] = kind
                importer.values[name] = result
            else:
                shape = None if kind.ndim < 0 else _open_static(kind)
                importer.values[name] = importer.dynamic.named_extents(result, shape, name)
        importer.notes.append(
            f"{node.op_type} node {node.name or label!r} depends on data: "
            f"{'one branch is run' if node.op_type == 'If' else 'its turns are run one by one'}"
        )


def _names_inside(graph: GraphProto) -> set[str]:
    """The names that `graph` and the graphs in it give to values."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(node.output)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                names |= _names_inside(subgraph)
    return names


def _relax_type(kind: Kind) -> Any:
    return relax.AnyType() if isinstance(kind, TypeProto) else kind


def _loose_type(kind: Kind) -> Any:
    if isinstance(kind, TypeProto):
        return relax.AnyType()
    return relax.TensorType(dtype=str(kind.dtype), ndim=kind.ndim)


def _dtype(kind: Kind) -> str:
    """The dtype of a tensor, or what a sequence holds."""
    if isinstance(kind, TypeProto):
        return f"a sequence of {kind.sequence_type.elem_type.tensor_type.elem_type}"
    return str(kind.dtype)


def _rank(kind: Kind) -> int | None:
    return None if isinstance(kind, TypeProto) else kind.ndim


def _same(first: Kind, second: Kind) -> bool:
    """Whether two types of one dtype tell the same extents."""
    if isinstance(first, TypeProto) or isinstance(second, TypeProto):
        return bool(first == second)
    if first.ndim != second.ndim or first.ndim < 0:
        return first.ndim == second.ndim
    return _open_static(first) == _open_static(second)


def _any_elements(kind: TypeProto) -> TypeProto:
    """A type of sequences that tells no more of the elements than their dtype."""
    result = TypeProto()
    result.CopyFrom(kind)
    result.sequence_type.elem_type.tensor_type.ClearField("shape")
    return result


def _tensor_kind(kind: Kind) -> relax.TensorType:
    if isinstance(kind, TypeProto):
        raise NotCompiledError("rows of a scan output are sequences")
    return kind


def _tensor_type(value: Any) -> relax.TensorType:
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        raise NotCompiledError("a value is no tensor")
    return value.ty


def _open_static(kind: relax.TensorType) -> list[int | None]:
    """Known extents of a tensor, None for the others."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        return [None] * kind.ndim
    return [int(e.value) if isinstance(e, tirx.IntImm) else None for e in kind.shape.values]


def _row(kind: relax.TensorType) -> dict[str, Any]:
    """Dtype and shape of what a turn gives: without a turn, nothing else tells them."""
    shape = None if kind.ndim < 0 else _open_static(kind)
    # Without a turn ONNX Runtime takes extents that are not known for zero.
    return {"shape": shape and [size or 0 for size in shape], "dtype": str(kind.dtype)}


def _row_type(kind: relax.TensorType, axis: int = 0) -> relax.TensorType:
    """The type of a stack of tensors along `axis`."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        ndim = kind.ndim + 1 if kind.ndim >= 0 else -1
        return relax.TensorType(dtype=str(kind.dtype), ndim=ndim)
    extents = list(kind.shape.values)
    extents.insert(axis % (len(extents) + 1), tirx.Var("turns", "int64"))
    return relax.TensorType(extents, str(kind.dtype))


def _slice_type(kind: relax.TensorType, axis: int) -> relax.TensorType:
    """The type of one slice along `axis`."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        raise NotCompiledError("a scan input of unknown shape")
    extents = list(kind.shape.values)
    del extents[axis]
    return relax.TensorType(extents, str(kind.dtype))


def _shape(kind: TypeProto.Tensor) -> list[int]:
    """The declared shape of the counter or the condition: a scalar or a vector of one."""
    return [1] * min(len(kind.shape.dim), 1)
