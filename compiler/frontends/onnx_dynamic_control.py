"""Loops and branches that only the data decide: functions of their own, called at run time.

The body of a Loop or Scan and both branches of an If become functions beside `main`, lowered
to the same kernels; `tinsmith.loop`, `tinsmith.scan` and `tinsmith.branch`, which the VM form
provides (see `compiler.module.vm_functions`), call them by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnx import GraphProto, NodeProto
from tvm import relax, tirx
from tvm.ir import GenericConst, StringImm

from compiler.errors import ModelError
from compiler.frontends.onnx_dynamic import free_names

if TYPE_CHECKING:
    from compiler.frontends.onnx_importer import GraphImporter

LOOP, SCAN, BRANCH = "tinsmith.loop", "tinsmith.scan", "tinsmith.branch"

# A state whose shape changes is given open extents, at most so often.
_ATTEMPTS = 3


class NotCompiledError(Exception):
    """A subgraph cannot become a function; carries the reason."""


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
            shapes = [
                _joined(node, importer, first, second) for first, second in zip(*kinds, strict=True)
            ]
        except NotCompiledError:
            self._evaluate(node, before)
            return
        condition = importer.tensor(node.input[0], "condition")
        text = json.dumps({"then": functions[0], "else": functions[1]})
        arguments = [StringImm(text), condition, *(importer.values[name] for name in captured)]
        self._bind(node, BRANCH, arguments, shapes)

    def loop(self, node: NodeProto, body: GraphProto) -> None:
        """A Loop of a number of turns that is not known."""
        importer = self._importer
        initial = list(node.input[2:])
        captured, before = self._captured(body), dict(importer.functions)
        try:
            states = [_tensor_type(importer.values[name]) for name in initial]
            counters = [
                relax.TensorType(_shape(value.type.tensor_type), dtype)
                for value, dtype in zip(body.input[:2], ("int64", "bool"), strict=True)
            ]
            name, results = self._body(body, counters, states, (), captured)
        except NotCompiledError:
            self._evaluate(node, before)
            return
        scans = [_row_type(kind) for kind in results[1 + len(states) :]]
        has = [position < len(node.input) and bool(node.input[position]) for position in (0, 1)]
        shapes = [_shape(value.type.tensor_type) for value in body.input[:2]]
        text = json.dumps(
            {
                "body": name,
                "limited": has[0],
                "conditional": has[1],
                "states": len(states),
                "ranks": [len(shape) for shape in shapes],
                "scans": [_row(kind) for kind in results[1 + len(states) :]],
            }
        )
        given = [name for name, there in zip(node.input[:2], has, strict=False) if there]
        arguments = [
            StringImm(text),
            *(importer.tensor(name, "loop input") for name in (*given, *initial, *captured)),
        ]
        self._bind(node, LOOP, arguments, [*states, *scans])

    def _evaluate(self, node: NodeProto, functions: Mapping[str, relax.Function]) -> None:
        """Call the node as it is; of the functions only those made before it are kept."""
        self._importer.functions = dict(functions)
        self._importer.dynamic.evaluate(node)

    def scan(
        self, node: NodeProto, body: GraphProto, sliced: int, attributes: Mapping[str, list[int]]
    ) -> None:
        """A Scan of a length that is not known, or is too long to be unrolled."""
        importer = self._importer
        count = len(node.input) - sliced
        captured, before = self._captured(body), dict(importer.functions)
        axes = attributes.get("scan_input_axes", [0] * sliced)
        try:
            states = [_tensor_type(importer.values[name]) for name in node.input[:count]]
            sources = [_tensor_type(importer.values[name]) for name in node.input[count:]]
            slices = [_slice_type(kind, axis) for kind, axis in zip(sources, axes, strict=True)]
            name, results = self._body(body, (), states, slices, captured)
        except NotCompiledError:
            self._evaluate(node, before)
            return
        rows = results[count:]
        out_axes = attributes.get("scan_output_axes", [0] * len(rows))
        text = json.dumps(
            {
                "body": name,
                "states": count,
                "axes": axes,
                "backward": attributes.get("scan_input_directions", [0] * sliced),
                "scans": [_row(kind) for kind in rows],
                "scan_axes": out_axes,
                "scan_backward": attributes.get("scan_output_directions", [0] * len(rows)),
            }
        )
        arguments = [
            StringImm(text),
            *(importer.tensor(name, "scan input") for name in (*node.input, *captured)),
        ]
        stacks = [_row_type(kind, axis) for kind, axis in zip(rows, out_axes, strict=True)]
        self._bind(node, SCAN, arguments, [*states, *stacks])

    def _body(
        self,
        body: GraphProto,
        counters: Sequence[relax.TensorType],
        states: list[relax.TensorType],
        slices: Sequence[relax.TensorType],
        captured: Sequence[str],
    ) -> tuple[str, list[relax.TensorType]]:
        """The function of a body that keeps the types of `states`, which are opened up for it."""
        names = [value.name for value in body.input]
        # A body with a counter has a condition as its first result.
        first = 1 if counters else 0
        for _ in range(_ATTEMPTS):
            # Parameters need their own names for open extents.
            own = [self._renamed(kind) for kind in (*states, *slices)]
            parameters = dict(zip(names, [*counters, *own], strict=True))
            name, results = self._function(body, parameters, captured)
            after = results[first : first + len(states)]
            if any(
                str(a.dtype) != str(b.dtype) or a.ndim != b.ndim
                for a, b in zip(states, after, strict=True)
            ):
                raise NotCompiledError("a state changes its rank")
            opened = [_opened(a, b, self._importer) for a, b in zip(states, after, strict=True)]
            if all(kind is None for kind in opened):
                return name, results
            del self._importer.functions[name]
            states[:] = [
                old if new is None else new for old, new in zip(states, opened, strict=True)
            ]
        raise NotCompiledError("a state changes its shape in too many ways")

    def _function(
        self, graph: GraphProto, parameters: Mapping[str, relax.TensorType], captured: Sequence[str]
    ) -> tuple[str, list[relax.TensorType]]:
        """A new function of `graph` and the types of its results.

        It takes `parameters` and after them the values `captured` from around it.
        """
        importer = self._importer
        self._count += 1
        name = f"subgraph_{self._count}"
        kinds = {**parameters}
        for outer in captured:
            kinds[outer] = self._renamed(_tensor_type(importer.values[outer]))
        variables = {key: relax.Var(importer.fresh_name(key), kind) for key, kind in kinds.items()}
        known = {
            key: value for key, value in importer.values.items() if isinstance(value, GenericConst)
        }
        outer_builder, outer_values = importer.builder, importer.values
        importer.builder = builder = relax.BlockBuilder()
        importer.values = {**known, **variables}
        try:
            with builder.function(name, list(variables.values())):
                try:
                    with builder.dataflow():
                        importer.add_graph(graph)
                        results = [importer.tensor(o.name, "subgraph output") for o in graph.output]
                        bound = [builder.emit(value) for value in results]
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
        types = [_tensor_type(value) for value in bound]
        importer.functions[name] = function
        return name, types

    def _captured(self, *graphs: GraphProto) -> list[str]:
        """Values around the node that its subgraphs read; constants go into the functions."""
        values = self._importer.values
        names = sorted(set().union(*(free_names(graph) for graph in graphs)) & set(values))
        return [name for name in names if not isinstance(values[name], GenericConst)]

    def _renamed(self, kind: relax.TensorType) -> relax.TensorType:
        """The same type with new names for open extents."""
        if not isinstance(kind.shape, relax.ShapeExpr):
            return kind
        names: dict[Any, tirx.Var] = {}
        extents = [
            extent
            if isinstance(extent, tirx.IntImm)
            else names.setdefault(extent, self._importer.dynamic.fresh_extent())
            for extent in kind.shape.values
        ]
        return relax.TensorType(extents, str(kind.dtype))

    def _bind(
        self,
        node: NodeProto,
        function: str,
        arguments: Sequence[Any],
        kinds: Sequence[relax.TensorType],
    ) -> None:
        importer = self._importer
        loose = [relax.TensorType(dtype=str(kind.dtype), ndim=kind.ndim) for kind in kinds]
        results = importer.dynamic.call(function, arguments, loose, node.output[0])
        for name, kind, result in zip(node.output, kinds, results, strict=False):
            if name:
                shape = None if kind.ndim < 0 else _open_static(kind)
                importer.values[name] = importer.dynamic.named_extents(result, shape, name)
        importer.notes.append(
            f"{node.op_type} node {node.name or node.output[0]!r} depends on data: "
            f"{'one branch is run' if node.op_type == 'If' else 'its turns are run one by one'}"
        )


def _tensor_type(value: Any) -> relax.TensorType:
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        raise NotCompiledError("a value is no tensor")
    return value.ty


def _open_static(kind: relax.TensorType) -> list[int | None]:
    """Known extents of a tensor, None for the others."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        return [None] * kind.ndim
    return [int(e.value) if isinstance(e, tirx.IntImm) else None for e in kind.shape.values]


def _static(kind: relax.TensorType) -> list[int] | None:
    shape = None if kind.ndim < 0 else _open_static(kind)
    return None if shape is None or None in shape else [e for e in shape if e is not None]


def _row(kind: relax.TensorType) -> dict[str, Any]:
    """Dtype and shape of what a turn gives: without a turn, nothing else tells them."""
    return {"shape": _static(kind), "dtype": str(kind.dtype)}


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


def _opened(
    state: relax.TensorType, after: relax.TensorType, importer: GraphImporter
) -> relax.TensorType | None:
    """`state` with open extents where `after` has others; None if it has none."""
    before, result = _open_static(state), _open_static(after)
    shape = [a if a == b else None for a, b in zip(before, result, strict=True)]
    if shape == before:
        return None
    extents = [importer.dynamic.fresh_extent() if size is None else size for size in shape]
    return relax.TensorType(extents, str(state.dtype))


def _joined(
    node: NodeProto, importer: GraphImporter, first: relax.TensorType, second: relax.TensorType
) -> relax.TensorType:
    """The type of a value that is of the first or the second type."""
    if str(first.dtype) != str(second.dtype):
        raise ModelError(
            f"{importer.describe(node)}: the branches give different dtypes ({first.dtype}, "
            f"{second.dtype}), and the condition depends on data; bind the input that decides it "
            "to a constant"
        )
    if first.ndim != second.ndim or first.ndim < 0:
        return relax.TensorType(dtype=str(first.dtype), ndim=-1)
    pairs = zip(_open_static(first), _open_static(second), strict=True)
    shape = [a if a == b and a is not None else importer.dynamic.fresh_extent() for a, b in pairs]
    return relax.TensorType(shape, str(first.dtype))


def _shape(kind: Any) -> list[int]:
    """The declared shape of the counter or the condition: a scalar or a vector of one."""
    return [1] * min(len(kind.shape.dim), 1)
