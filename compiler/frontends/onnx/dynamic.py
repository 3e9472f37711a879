"""ONNX nodes whose results have a shape that only the data tell, or for which there is no kernel.

Such a node is not translated: the graph calls it as it is (`tinsmith.evaluate`, which the VM
form provides, see `tinsmith.compiler.module.vm_functions`), and a `match_cast` names the extents
of its results. Elementwise operators that follow become kernels with these extents; all others that
read such tensors are called in the same way, since no template tiles what has no size.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import tvm
from onnx import GraphProto, NodeProto, TensorProto, TypeProto
from tvm import relax, tirx
from tvm.ir import GenericConst, Op, StringImm

from tinsmith.compiler.errors import ModelError

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.onnx.importer import GraphImporter

# The function that evaluates a node at run time: its text, then its inputs.
EVALUATE = "tinsmith.evaluate"
# The function that gives back a tensor, of whose rank nothing is known but what is declared.
DECLARED = "tinsmith.declared"

# The shape of what these give depends on the values of their first input.
DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})

# Rare operators that nobody wrote a kernel for.
WITHOUT_KERNEL = frozenset({"BitCast", "Det", "LinearAttention", "TfIdfVectorizer"})

# By operator: the inputs that must be known for the shape of the result to be known.
_DECIDE_SHAPE: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "STFT": (1, 3),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip

# Elementwise operators: their kernels need no sizes to be good.
_COMPILED = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor",
        "Greater", "GreaterOrEqual", "HardSigmoid", "Identity", "LeakyRelu", "Less", "LessOrEqual",
        "Log", "Mul", "Neg", "Not", "Or", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus",
        "Sqrt", "Sub", "Tanh", "Where",
    }
)  # fmt: skip

# Larger constants are of no use to the inference of shapes.
_SHAPE_ELEMENTS = 1024


class DynamicNodes:
    """Adds nodes with results of unknown shape to the function that `importer` is building."""

    def __init__(self, importer: GraphImporter) -> None:
        self._importer = importer
        # Types of sequences, which Relax knows nothing of, by the name of the value.
        self.sequences: dict[str, TypeProto] = {}
        self._extents = 0

    def concerns(self, node: NodeProto) -> bool:
        """Whether the shape of an input or a result of `node` is not known, or no kernel is."""
        if node.domain not in ("", "ai.onnx"):
            return any(self._open(name) for name in node.input if name)
        if node.op_type in DATA_DEPENDENT or node.op_type in WITHOUT_KERNEL or _is_odd(node):
            return True
        decisive = _DECIDE_SHAPE.get(node.op_type, ())
        if self._importer.opset < 13 and node.op_type in ("Squeeze", "Unsqueeze", "Split"):
            decisive = ()
        for position in decisive:
            name = node.input[position] if position < len(node.input) else ""
            if name and self._importer.constant(name) is None:
                return True
        return any(self._open(name) for name in node.input if name)

    def add(self, node: NodeProto, convert: Callable[[], None]) -> None:
        """Bind the outputs of a node of which `concerns` holds; `convert` translates it."""
        if node.op_type in _COMPILED and node.domain in ("", "ai.onnx"):
            try:
                convert()
            except Exception:  # a converter that wants sizes: there is another way
                pass
            else:
                if not any(self._unknown(self._importer.values.get(name)) for name in node.output):
                    return
        self.evaluate(node)

    def evaluate(self, node: NodeProto) -> None:
        """Call `node` as it is, and bind its outputs. Raises ModelError where that cannot be."""
        importer = self._importer
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"{importer.describe(node)}: its input has a shape that depends on data, for which "
                f"{node.domain}.{node.op_type} cannot be compiled; export the model with "
                "operators of the standard domain"
            )
        own = [name for name in node.input if name]
        names = list(dict.fromkeys([*own, *self._captured(node)]))
        values = [importer.values[name] for name in names]
        model = self._model(node, names, values)
        types = self._result_types(node, model, names)
        del model.graph.value_info[:]
        wanted = [name for name in node.output if name]
        kinds = [self._type(types[name]) for name in wanted]
        arguments = [self._argument(value) for value in values]
        text = base64.b64encode(model.SerializeToString(deterministic=True)).decode("ascii")
        results = self.call(
            EVALUATE, [StringImm(text), *arguments], kinds, wanted[0] if wanted else "value"
        )
        for name, result in zip(wanted, results, strict=True):
            if types[name].HasField("sequence_type"):
                self.sequences[name] = types[name]
                importer.values[name] = result
            else:
                shape = self._shape(node, types[name])
                importer.values[name] = self.named_extents(result, shape, name)

    def call(
        self, function: str, arguments: Sequence[Any], kinds: Sequence[Any], name: str
    ) -> list[relax.Expr]:
        """The results of a function that the VM form provides, of the given types."""
        importer = self._importer
        single = len(kinds) == 1
        kind = kinds[0] if single else relax.TupleType(list(kinds))
        call = relax.Call(
            Op.get("relax.call_pure_packed"),
            [relax.ExternFunc(function), *arguments],
            None,
            [kind],
        )
        result = importer.builder.emit(call, importer.fresh_name(name))
        if single:
            return [result]
        return [
            importer.builder.emit(relax.TupleGetItem(result, i), importer.fresh_name(name))
            for i in range(len(kinds))
        ]

    def named_extents(
        self, value: relax.Expr, shape: Sequence[int | None] | None, name: str
    ) -> relax.Expr:
        """`value` with its extents known or named; as it is if not even their number is known."""
        if shape is None:
            return value
        extents = [self.fresh_extent() if size is None else size for size in shape]
        kind = relax.TensorType(extents, str(value.ty.dtype))
        return self._importer.builder.match_cast(value, kind, self._importer.fresh_name(name))

    def declared(self, value: relax.Expr, rank: int, name: str) -> relax.Expr:
        """An output of which nothing but the declared rank is known, and that may have another.

        ONNX Runtime gives back what was computed in such a case, and so do modules.
        """
        kind = relax.TensorType(dtype=str(value.ty.dtype), ndim=rank)
        (result,) = self.call(DECLARED, [value], [kind], name)
        return result

    def fresh_extent(self) -> tirx.Var:
        """A name for an extent that nothing is known of."""
        self._extents += 1
        return tirx.Var(f"n{self._extents}", "int64")

    def _open(self, name: str) -> bool:
        """Whether the shape of the value `name` is not fixed."""
        value = self._importer.values.get(name)
        if isinstance(value, relax.Tuple):
            return any(_is_open(field) for field in value.fields)
        return isinstance(value, relax.Expr) and _is_open(value)

    @staticmethod
    def _unknown(value: Any) -> bool:
        """Whether a value that was just converted has no named extents."""
        if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
            return value is not None
        return not isinstance(value.ty.shape, relax.ShapeExpr)

    def _argument(self, value: Any) -> relax.Expr:
        if isinstance(value, relax.ShapeExpr):
            return self._importer.builder.emit(relax.op.shape_to_tensor(value))
        if not isinstance(value, relax.Expr):
            raise ModelError(f"{self._importer.source}: an optional that depends on data")
        return value

    def _captured(self, node: NodeProto) -> Iterable[str]:
        """Values around `node` that its subgraphs read."""
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from sorted(free_names(graph) & set(self._importer.values))

    def _model(self, node: NodeProto, names: Sequence[str], values: Sequence[Any]) -> Any:
        """A model of one node with inputs of the types at hand."""
        copied = NodeProto()
        copied.CopyFrom(node)
        inputs = [
            onnx.helper.make_value_info(name, self.type_of(name, value))
            for name, value in zip(names, values, strict=True)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(n) for n in node.output if n]
        graph = onnx.helper.make_graph([copied], "node", inputs, outputs)
        opset = onnx.helper.make_opsetid("", self._importer.opset)
        model = onnx.helper.make_model(graph, opset_imports=[opset])
        model.ir_version = 8
        return model

    def type_of(self, name: str, value: Any) -> TypeProto:
        """The type of the value `name` as ONNX tells it."""
        if isinstance(value, relax.Tuple):
            if not value.fields:
                element = onnx.helper.make_tensor_type_proto(self._empty_dtype(name), None)
                return onnx.helper.make_sequence_type_proto(element)
            element = _tensor_type(value.fields[0].ty)
            ranks = {field.ty.ndim for field in value.fields}
            element.tensor_type.ClearField("shape")
            if len(ranks) == 1 and min(ranks) >= 0:
                element.tensor_type.shape.SetInParent()
                for _ in range(min(ranks)):
                    element.tensor_type.shape.dim.add()
            return onnx.helper.make_sequence_type_proto(element)
        if name in self.sequences:
            return self.sequences[name]
        if isinstance(value, relax.ShapeExpr):
            return onnx.helper.make_tensor_type_proto(onnx.TensorProto.INT64, [len(value.values)])
        return _tensor_type(value.ty)

    def _empty_dtype(self, name: str) -> int:
        """The element type of the sequence that a SequenceEmpty has made."""
        for node in nodes_of(self._importer.graph):
            if node.op_type == "SequenceEmpty" and name in node.output:
                return next((a.i for a in node.attribute if a.name == "dtype"), TensorProto.FLOAT)
        return TensorProto.FLOAT

    def _result_types(
        self, node: NodeProto, model: onnx.ModelProto, names: Sequence[str]
    ) -> dict[str, TypeProto]:
        """What onnx infers of the outputs. Raises ModelError if a dtype is not to be had."""
        known = onnx.ModelProto()
        known.CopyFrom(model)
        for name in names:
            array = self._importer.constant(name)
            if array is not None and array.size <= _SHAPE_ELEMENTS and array.dtype.kind in "fiub":
                known.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        try:
            inferred = onnx.shape_inference.infer_shapes(known, data_prop=True)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise ModelError(
                f"{self._importer.describe(node)}: {reason[-1] if reason else 'cannot be typed'}"
            ) from error
        types = {value.name: value.type for value in inferred.graph.output}
        first = _extents(self._importer.values.get(node.input[0])) if node.input else None
        for name, kind in types.items():
            if node.op_type == "SplitToSequence" and first is not None:
                # The parts have as many axes as the whole; onnx infers nothing of them.
                element = kind.sequence_type.elem_type.tensor_type
                element.shape.Clear()
                keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
                for _ in range(len(first) - (not keeps and len(node.input) == 1)):
                    element.shape.dim.add()
            dtype_known = kind.HasField("sequence_type") or kind.tensor_type.elem_type
            if not dtype_known:
                raise ModelError(
                    f"{self._importer.describe(node)}: the dtype of {name!r} depends on data"
                )
        return types

    def _type(self, kind: TypeProto) -> Any:
        if kind.HasField("sequence_type"):
            return relax.AnyType()
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
        ndim = len(kind.tensor_type.shape.dim) if kind.tensor_type.HasField("shape") else -1
        return relax.TensorType(dtype=dtype, ndim=ndim)

    def _shape(self, node: NodeProto, kind: TypeProto) -> list[int | None] | None:
        """The extents of a result, as far as they are known."""
        tensor = kind.tensor_type
        if tensor.HasField("shape"):
            return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        rank = self._rank(node)
        return None if rank is None else [None] * rank

    def _rank(self, node: NodeProto) -> int | None:
        """The rank of the result where onnx's inference does not know it."""
        given = [self._importer.values.get(name) if name else None for name in node.input]
        if node.op_type in ("Reshape", "ConstantOfShape", "Expand"):
            length = _extents(given[-1])
            if not length or length[0] is None:
                return None
            first = _extents(given[0])
            if node.op_type == "Expand":
                return None if first is None else max(length[0], len(first))
            return length[0]
        if node.op_type.startswith("Reduce"):
            keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
            first = _extents(given[0])
            return len(first) if keeps and first is not None else None
        if node.op_type in ("Slice", "Pad", "Tile", "Resize", "Upsample", "TopK", "Gather"):
            first = _extents(given[0])
            return None if first is None or node.op_type == "Gather" else len(first)
        return None


def evaluated_nodes(module: tvm.IRModule) -> Counter[str]:
    """The operators of the nodes that the functions of `module` call as they are, counted."""
    counts: Counter[str] = Counter()

    def note(value: Any) -> None:
        if not isinstance(value, relax.Call) or not isinstance(value.args[0], relax.ExternFunc):
            return
        if value.args[0].global_symbol == EVALUATE:
            model = onnx.ModelProto.FromString(base64.b64decode(value.args[1].value))
            counts[model.graph.node[0].op_type] += 1

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, note)
    return counts


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of `graph` and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from nodes_of(subgraph)


def _is_odd(node: NodeProto) -> bool:
    """Whether `node` is of a form that no kernel is written for: the largest sample of a region."""
    return node.op_type == "RoiAlign" and any(
        attribute.name == "mode" and attribute.s == b"max" for attribute in node.attribute
    )


def free_names(graph: GraphProto) -> set[str]:
    """The names that `graph` and its subgraphs read from around it."""
    own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    free: set[str] = set()
    for node in graph.node:
        read = {name for name in node.input if name}
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                read |= free_names(subgraph)
        free |= read - own
        own.update(node.output)
    return free | ({value.name for value in graph.output} - own)


def _is_open(value: relax.Expr) -> bool:
    if isinstance(value, GenericConst):
        return False
    if isinstance(value.ty, relax.TensorType):
        return None in (_extents(value) or ([None] if value.ty.ndim < 0 else []))
    return isinstance(value.ty, relax.AnyType)


def _extents(value: Any) -> list[int | None] | None:
    """The extents of a tensor, None for those that are not known; None if it is none."""
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        return None
    shape = value.ty.shape
    if isinstance(shape, relax.ShapeExpr):
        return [int(e.value) if isinstance(e, tirx.IntImm) else None for e in shape.values]
    return None if value.ty.ndim < 0 else [None] * value.ty.ndim


def _tensor_type(kind: relax.TensorType) -> TypeProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(_numpy_dtype(str(kind.dtype)))
    if isinstance(kind.shape, relax.ShapeExpr):
        dims: list[Any] | None = [
            int(e.value) if isinstance(e, tirx.IntImm) else str(e) for e in kind.shape.values
        ]
    else:
        dims = None if kind.ndim < 0 else [None] * kind.ndim
    return onnx.helper.make_tensor_type_proto(element, dims)


def _numpy_dtype(dtype: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
