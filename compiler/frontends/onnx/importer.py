"""Walking an ONNX graph and building the Relax function for it.

TVM's converters, one class per operator, do the translation; the walk around them
is our own, because theirs neither evaluates what is already known (shape
arithmetic above all), nor resolves control flow, nor says which node failed.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.errors import ModelError, TinsmithError
from tinsmith.compiler.frontends.conversion_errors import reason_of
from tinsmith.compiler.frontends.onnx.control import ControlFlow
from tinsmith.compiler.frontends.onnx.converters.constants import (
    COMPUTABLE_DTYPES,
    constant,
    known_shape,
    storable,
)
from tinsmith.compiler.frontends.onnx.dynamic import DynamicNodes, evaluated_nodes
from tinsmith.compiler.frontends.onnx.empty import empty_constant, without_empty_operands
from tinsmith.compiler.frontends.onnx.evaluate import (
    AMPLIFYING,
    broadcast_shapes,
    evaluate,
    predicted_shapes,
)
from tinsmith.compiler.frontends.onnx.files import standard_opset
from tinsmith.compiler.frontends.onnx.limits import Budget
from tinsmith.compiler.frontends.onnx.operators import CONTROL_FLOW, domain_of
from tinsmith.compiler.frontends.onnx.schemas import check_input_types, schema_of
from tinsmith.compiler.frontends.onnx.shapes import BoundInput
from tinsmith.compiler.frontends.onnx.slice_assignments import SliceAssignments

Converters = Mapping[tuple[str, str], type[OnnxOpConverter]]

# These converters return one value that happens to be a tuple (a sequence), not many values.
_SEQUENCE_OPERATORS = frozenset(
    {
        "Optional",
        "OptionalGetElement",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SplitToSequence",
    }
)
_TYPES_OF_ONE_FIELD = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.TYPE_PROTO: "tp",
}
_TYPES_OF_MANY = {
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.TYPE_PROTOS: "type_protos",
}


def variable_name(name: str) -> str:
    """What the variable of a tensor is called, but for a number where several are called so."""
    clean = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"v_{clean}" if clean[0].isdigit() else clean


class GraphImporter:
    """Builds one Relax function from one ONNX graph whose inputs have fixed shapes.

    `values` maps the names in scope to Relax expressions: constants, variables, and tuples
    for ONNX sequences.
    """

    def __init__(
        self, model: ModelProto, converters: Converters, source: str, budget: Budget
    ) -> None:
        self.graph = model.graph
        self.source = source
        self.opset = standard_opset(model) or 1
        self.builder = relax.BlockBuilder()
        self.values: dict[str, Any] = {}
        self.notes: list[str] = []
        # What was stored in a wider dtype than the model says: the model's dtype by name.
        self.narrow: dict[str, str] = {}
        self.budget = budget
        self._converters = converters
        # Subgraphs that are called at run time, and how often which operator is.
        self.functions: dict[str, relax.Function] = {}
        self.dynamic = DynamicNodes(self)
        self._control_flow = ControlFlow(self)
        # The function itself is named so.
        self._names: set[str] = {"main"}

    def import_graph(
        self, inputs: Sequence[BoundInput], ranks: Mapping[str, int] | None = None
    ) -> tvm.IRModule:
        """The module with the function `main`; its parameters follow `inputs`.

        `ranks` are what is declared of outputs, for those of which nothing else is known.
        """
        parameters = []
        for value in inputs:
            variable = relax.Var(
                self.fresh_name(value.name), relax.TensorType(value.shape, value.dtype)
            )
            self.values[value.name] = _known_if_empty(variable)
            parameters.append(variable)
        with self.builder.function("main", params=parameters):
            try:
                with self.builder.dataflow():
                    self.add_graph(self.graph)
                    outputs = [
                        self._ranked(self.tensor(value.name, "output"), value.name, ranks or {})
                        for value in self.graph.output
                    ]
                    result = outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)
                    result = self.builder.emit_output(result)
            except BaseException:
                # TVM prints a warning of its own about a block that was left open.
                self.builder._end_block()
                raise
            self.builder.emit_func_output(result)
        module = self.builder.get()
        for name, function in self.functions.items():
            module[name] = function
        evaluated = evaluated_nodes(module)
        if evaluated:
            told = ", ".join(f"{count} {name}" for name, count in sorted(evaluated.items()))
            self.notes.append(
                f"evaluated one by one, since shapes depend on data or no kernel is there: {told}"
            )
        return module

    def _ranked(self, value: relax.Expr, name: str, ranks: Mapping[str, int]) -> relax.Expr:
        """An output of a rank that only its declaration tells, with that."""
        if isinstance(value.ty, relax.TensorType) and value.ty.ndim < 0 and name in ranks:
            return self.dynamic.declared(value, ranks[name], name)
        return value

    def add_graph(self, graph: GraphProto) -> None:
        """Convert the initializers and nodes of `graph` into the current scope."""
        self.add_initializers(graph)
        assignments = SliceAssignments(self, graph)
        for node in graph.node:
            if not assignments.take(node):
                self.add_node(node)

    def add_initializers(self, graph: GraphProto) -> None:
        """Bind the constants of `graph` in the current scope."""
        for tensor in graph.initializer:
            self.hold(tensor.name, onnx.numpy_helper.to_array(tensor))

    def tensor(self, name: str, role: str) -> relax.Expr:
        """The value `name` as a tensor expression."""
        value = self._lookup(name, role)
        if not isinstance(value, relax.Expr) or isinstance(value.ty, relax.TupleType):
            raise ModelError(f"{self.source}: {role} {name!r} is a sequence or optional")
        if isinstance(value.ty, relax.ShapeType):
            return self.builder.emit(relax.op.shape_to_tensor(value))
        return value

    def constant(self, name: str) -> np.ndarray | None:
        """The value `name` if it is known now."""
        value = self.values.get(name)
        return value.value.numpy() if isinstance(value, GenericConst) else None

    def describe(self, node: NodeProto) -> str:
        """How error messages name `node`."""
        label = node.name or (node.output[0] if node.output else "")
        return f"{self.source}: node {label!r} ({node.op_type})"

    def emit(self, value: relax.Expr, name: str) -> relax.Expr:
        """Bind `value` to a variable named after the ONNX value `name`."""
        if isinstance(value, GenericConst | relax.Var):
            return value
        return self.builder.emit(value, self.fresh_name(name))

    def hold(self, name: str, array: np.ndarray) -> None:
        """Bind the value `name` to a constant."""
        stored = storable(array)
        if str(stored.dtype) not in COMPUTABLE_DTYPES:
            raise ModelError(
                f"{self.source}: the constant {name!r} has the dtype {array.dtype}, which cannot "
                "be computed with"
            )
        self.values[name] = constant(stored)
        if stored.dtype != array.dtype:
            self.narrow[name] = str(array.dtype)

    def _lookup(self, name: str, role: str) -> Any:
        if name not in self.values:
            raise ModelError(
                f"{self.source}: {role} {name!r} is produced by no node before it; "
                "the graph is incomplete or not in topological order"
            )
        return self.values[name]

    def fresh_name(self, name: str) -> str:
        """A name like `name` that no variable has."""
        clean = variable_name(name)
        unique, number = clean, 1
        while unique in self._names:
            unique, number = f"{clean}_{number}", number + 1
        self._names.add(unique)
        return unique

    def add_node(self, node: NodeProto) -> None:
        """Convert `node` into the current scope."""
        where = f"{self.describe(node)}: input"
        inputs = onnx_input(self._lookup(name, where) if name else None for name in node.input)
        self.budget.count_node(self.describe(node))
        types = [self._type_of(name) for name in node.input]
        check_input_types(node, schema_of(node, self.opset), types, self.describe(node))
        try:
            if not domain_of(node) and node.op_type in CONTROL_FLOW:
                self._control_flow.add(node)
                return
            known = self._evaluate(node)
            if known is not None:
                for name, array in zip((n for n in node.output if n), known, strict=True):
                    self.hold(name, array)
                return
            if self.dynamic.concerns(node):
                convert = lambda: self._bind_outputs(node, self._convert(node, inputs))  # noqa: E731
                self.dynamic.add(node, convert)
                return
            self._check_prediction(node)
            self._bind_outputs(node, self._convert(node, inputs))
        except TinsmithError:
            raise
        except Exception as error:
            reason = reason_of(error, inputs)
            raise ModelError(f"{self.describe(node)} cannot be converted: {reason}") from error

    def _type_of(self, name: str) -> str | None:
        """The dtype of the value `name`, "sequence" for several tensors, None if not known."""
        value = self.values.get(name)
        if isinstance(value, relax.ShapeExpr):
            return "int64"
        kind = value.ty if isinstance(value, relax.Expr) else None
        if isinstance(kind, relax.TupleType | relax.AnyType):
            return "sequence"
        if not isinstance(kind, relax.TensorType):
            return None
        return self.narrow.get(name, str(kind.dtype))

    def _evaluate(self, node: NodeProto) -> Sequence[np.ndarray] | None:
        """The outputs of `node` if they are known already."""
        if node.op_type in ("Shape", "Size") and not node.domain:
            value = self.values[node.input[0]]
            shape = known_shape(value)
            if shape is not None:
                return [_shape_result(node, shape)]
        arrays = {}
        for name in node.input:
            if name:
                array = self.constant(name)
                if array is None:
                    return None
                arrays[name] = array
        return evaluate(node, arrays, self.opset, self.budget)

    def _convert(self, node: NodeProto, inputs: onnx_input) -> Any:
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        attributes["tvm_custom"] = {
            "name": node.name,
            "num_outputs": len(node.output),
            "dtypes": [self.narrow.get(name) for name in node.input],
            "notes": self.notes,
            # Dtypes of results that are stored in a wider one.
            "results": [],
        }
        made = without_empty_operands(self.builder, node, list(inputs), attributes)
        if made is not None:
            return made
        converter_class = self._converters.get((domain_of(node), node.op_type))
        if converter_class is None:
            raise ModelError(
                f"{self.describe(node)}: no converter knows the operator, and its result is too "
                "large to be computed at compile time"
            )
        converter = converter_class.get_converter(self.opset)
        # The converters print and warn; what matters of it becomes an error or a note.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = converter(self.builder, inputs, attributes, [self.values, {}])
        self.narrow.update(zip(node.output, attributes["tvm_custom"]["results"], strict=False))
        return result

    def _check_prediction(self, node: NodeProto) -> None:
        """Raise ModelError before a converter makes something too large of small operands.

        Of constants, converters make constants, whatever the operator is.
        """
        computed = bool(node.input) and all(self.constant(n) is not None for n in node.input if n)
        if node.domain or not (computed or node.op_type in AMPLIFYING):
            return
        types = {}
        for name in filter(None, node.input):
            shape, kind = known_shape(self.values[name]), self._type_of(name)
            if shape is None or kind is None or kind == "sequence":
                return
            try:
                types[name] = (np.dtype(kind), shape)
            except TypeError:  # a dtype that numpy has under no name
                return
        known = {name: array for name in types if (array := self.constant(name)) is not None}
        predicted = predicted_shapes(node, types, known, self.opset) or []
        if computed:
            predicted += broadcast_shapes(known.values())
        for shapes in predicted:
            where = f"{self.describe(node)}: its result"
            self.budget.check_tensor(shapes, where)
            if computed:
                largest = max(array.size for array in known.values())
                self.budget.check_constant(shapes, largest, where)

    def _check_size(self, value: relax.Expr, where: str) -> None:
        """Raise ModelError for a tensor that is larger than the budget allows."""
        if isinstance(value.ty, relax.TensorType) and isinstance(value.ty.shape, relax.ShapeExpr):
            sizes = [getattr(dim, "value", None) for dim in value.ty.shape.values]
            self.budget.check_tensor(sizes, where)

    def _bind_outputs(self, node: NodeProto, result: Any) -> None:
        if not isinstance(result, relax.Expr):
            self.values[node.output[0]] = result
            return
        if not isinstance(result, relax.Tuple | relax.ShapeExpr):
            result = self.emit(self.builder.normalize(result), node.output[0])
        if node.op_type in _SEQUENCE_OPERATORS:
            if isinstance(result.ty, relax.TupleType) and not isinstance(result, relax.Tuple):
                # The converters of sequences count their fields.
                fields = [relax.TupleGetItem(result, i) for i in range(len(result.ty.fields))]
                result = relax.Tuple([self.emit(self.builder.normalize(f), "part") for f in fields])
            self.values[node.output[0]] = result
            return
        if isinstance(result, relax.Tuple):
            fields = list(result.fields)
        elif isinstance(result.ty, relax.TupleType):
            fields = [relax.TupleGetItem(result, i) for i in range(len(result.ty.fields))]
        else:
            fields = [result]
        wanted = [(index, name) for index, name in enumerate(node.output) if name]
        for index, name in wanted:
            if index >= len(fields):
                raise ModelError(f"{self.describe(node)}: output {name!r} is not supported")
            field = fields[index]
            if not isinstance(field, relax.ShapeExpr):
                field = self.emit(self.builder.normalize(field), name)
            self._check_size(field, f"{self.describe(node)}: output {name!r}")
            self.values[name] = _known_if_empty(field)


def _known_if_empty(value: Any) -> Any:
    """`value`, or the constant that it is if it has no elements."""
    empty = empty_constant(value)
    return value if empty is None else empty


def _attribute(attribute: AttributeProto) -> Any:
    """The value of `attribute` in the form that TVM's converters expect."""
    if attribute.type in _TYPES_OF_ONE_FIELD:
        return getattr(attribute, _TYPES_OF_ONE_FIELD[attribute.type])
    if attribute.type in _TYPES_OF_MANY:
        return tuple(getattr(attribute, _TYPES_OF_MANY[attribute.type]))
    raise ModelError(f"attribute {attribute.name!r} is of a kind that is not supported")


def _shape_result(node: NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[slice(bounds.get("start", 0), bounds.get("end"))], dtype=np.int64)
