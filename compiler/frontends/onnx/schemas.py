"""Whether the nodes of an ONNX model are what the standard says of their operators.

Checked before any converter or tool sees a node: how many inputs and outputs it has, which of
them may be left out, and the types of its attributes. Converters may rely on it; the tools in
C++ that they call do not ask, and crash. What nodes read is compared with the standard once
its type is known, see `check_input_types`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import onnx.defs
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)
from onnx.defs import OpSchema

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.attributes import check_value
from tinsmith.compiler.frontends.onnx.halves import HALVES

_STANDARD_DOMAINS = ("", "ai.onnx")
# Attributes that hold one message, which must be there.
_MESSAGES = {
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}

# What ONNX Runtime documents of its own operators, which no installed package describes:
# required (r), optional (o) and repeated (v) inputs, then the attributes that must be there.
_MICROSOFT: dict[str, tuple[str, tuple[str, ...]]] = {
    "Attention": ("rroooooo", ("num_heads",)),
    "BiasGelu": ("rr", ()),
    "DequantizeLinear": ("rro", ()),
    "DynamicQuantizeLSTM": ("rrrooooorrrr", ()),
    "DynamicQuantizeMatMul": ("rrroo", ()),
    "EmbedLayerNormalization": ("rorrorroo", ()),
    "FastGelu": ("ro", ()),
    "FusedConv": ("rroo", ()),
    "FusedGemm": ("rro", ()),
    "FusedMatMul": ("rr", ()),
    "Gelu": ("r", ()),
    "GroupQueryAttention": ("rooooooooooooo", ("num_heads", "kv_num_heads")),
    "MatMulInteger16": ("rr", ()),
    "MatMulIntegerToFloat": ("rrrrooo", ()),
    "MatMulNBits": ("rrrooo", ("K", "N", "block_size")),
    "MultiHeadAttention": ("rooooooooo", ("num_heads",)),
    "QAttention": ("rrrrroooo", ("num_heads",)),
    "QGemm": ("rrrrrrooo", ()),
    "QLinearAdd": ("rrorroro", ()),
    "QLinearAveragePool": ("rroro", ("kernel_shape",)),
    "QLinearConcat": ("rrv", ("axis",)),
    "QLinearConv": ("rrorroroo", ()),
    "QLinearGlobalAveragePool": ("rrrrr", ()),
    "QLinearLeakyRelu": ("rroro", ()),
    "QLinearMatMul": ("rrrrrrrr", ()),
    "QLinearMul": ("rrorroro", ()),
    "QLinearReduceMean": ("rroro", ()),
    "QLinearSigmoid": ("rroro", ()),
    "QLinearSoftmax": ("rrorr", ()),
    "QLinearWhere": ("rrrrrrrrr", ()),
    "QuantizeLinear": ("rro", ()),
    "QuickGelu": ("r", ()),
    "RotaryEmbedding": ("rrrr", ()),
    "SkipLayerNormalization": ("rrroo", ()),
    "SkipSimplifiedLayerNormalization": ("rrro", ()),
}

# The classes of dtypes that operators tell apart; within a class the converters are as wide as
# they like (bfloat16 where an old operator set names float only).
_CLASSES = (
    ("float", ("float", "double", "bfloat")),
    ("integer", ("int", "uint")),
    ("bool", ("bool",)),
    ("string", ("string",)),
    ("complex", ("complex",)),
)


def check_nodes(model: ModelProto, source: str) -> None:
    """Raise ModelError naming the node that is not what its operator's definition says."""
    _check_graph(model.graph, _versions(model.opset_import), source)
    for function in model.functions:
        versions = _versions(function.opset_import)
        for node in function.node:
            _check_node(node, versions, source, function)


def schema_of(node: NodeProto, version: int) -> OpSchema | None:
    """The definition of a standard operator in that operator set; None for any other."""
    return _schema(node.op_type, version) if node.domain in _STANDARD_DOMAINS else None


def check_input_types(
    node: NodeProto, schema: OpSchema | None, types: Sequence[str | None], where: str
) -> None:
    """Raise ModelError if the node cannot take what it reads.

    `types` has for each input its dtype in numpy's spelling, "sequence", or None for one that is
    left out or whose type is not known. `where` names the node.
    """
    if schema is None:
        return
    bound: dict[str, tuple[str, str]] = {}
    for index, (name, kind) in enumerate(zip(node.input, types, strict=True)):
        formal = _formal(schema.inputs, index)
        if kind is None or formal is None:
            continue
        allowed = _allowed(schema.name, schema.since_version, min(index, len(schema.inputs) - 1))
        if _class_of(kind) not in allowed:
            raise ModelError(
                f"{where}: input {name!r} is of type {kind}, and input {formal.name} of "
                f"{schema.name} takes {' or '.join(sorted(allowed))}"
            )
        same = formal.is_homogeneous and "(" not in formal.type_str and kind != "sequence"
        first, dtype = bound.setdefault(formal.type_str, (name, kind)) if same else ("", kind)
        if dtype != kind and "sequence" not in (dtype, kind):
            raise ModelError(
                f"{where}: inputs {first!r} ({dtype}) and {name!r} ({kind}) must have one dtype"
            )


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if i.domain in _STANDARD_DOMAINS else i.domain: i.version for i in imports}


def _check_graph(graph: GraphProto, versions: Mapping[str, int], source: str) -> None:
    for node in graph.node:
        _check_node(node, versions, source, None)
    producers = {name: (node, i) for node in graph.node for i, name in enumerate(node.output)}
    for value in graph.output:
        if value.name in producers:
            _check_declared(value, *producers[value.name], versions.get("", 0), source)


def _check_declared(
    value: ValueInfoProto, node: NodeProto, index: int, version: int, source: str
) -> None:
    """Raise ModelError for an output declared as 16-bit floats that are none.

    What is declared in another way is believed to be what its node makes of it; but these are
    widened (`halves`), and rounded again because they are declared so.
    """
    element, schema = value.type.tensor_type.elem_type, schema_of(node, version)
    if schema is None or not schema.outputs or element not in HALVES:
        return
    index = min(index, len(schema.outputs) - 1)
    allowed = _produced(schema.name, schema.since_version, index)
    if _class_of("float") not in allowed and "sequence" not in allowed:
        kind = TensorProto.DataType.Name(element).lower()
        raise ModelError(
            f"{source}: output {value.name!r} is declared as {kind}, and {schema.name} gives "
            f"{' or '.join(sorted(allowed))}; correct the declaration"
        )


def _check_node(
    node: NodeProto, versions: Mapping[str, int], source: str, function: FunctionProto | None
) -> None:
    label = node.name or next(filter(None, node.output), "")
    where = f"{source}: node {label!r} ({node.op_type})"
    seen: set[str] = set()
    for attribute in node.attribute:
        if attribute.name in seen:
            raise ModelError(f"{where}: has the attribute {attribute.name!r} twice")
        seen.add(attribute.name)
        _check_attribute(attribute, where, function)
    version = versions.get("", 0)
    if node.domain in _STANDARD_DOMAINS:
        schema = _schema(node.op_type, version)
        if schema is not None:
            _check_standard(node, schema, where)
    elif node.domain == "com.microsoft" and node.op_type in _MICROSOFT:
        marks, required = _MICROSOFT[node.op_type]
        _check_inputs(node, marks, marks.count("r"), where)
        _check_required(required, seen, where)
    if node.op_type in ("Loop", "If", "Scan") or node.domain not in _STANDARD_DOMAINS:
        outputs = [name for name in node.output if name]
        if not outputs:
            raise ModelError(f"{where}: has no output")
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            _check_graph(graph, versions, source)


def _check_standard(node: NodeProto, schema: OpSchema, where: str) -> None:
    options = OpSchema.FormalParameterOption
    letters = {options.Single: "r", options.Optional: "o", options.Variadic: "v"}
    marks = "".join(letters[formal.option] for formal in schema.inputs)
    _check_inputs(node, marks, schema.min_input, where)
    count = len(node.output)
    while count and not node.output[count - 1]:
        count -= 1
    if not 0 < count <= schema.max_output or len(node.output) < schema.min_output:
        raise ModelError(
            f"{where}: has {count} outputs; {schema.name} has "
            f"{_between(schema.min_output, schema.max_output)}"
        )
    given = set()
    for attribute in node.attribute:
        given.add(attribute.name)
        declared = schema.attributes.get(attribute.name)
        if declared is None:
            raise ModelError(
                f"{where}: has the attribute {attribute.name!r}, which {schema.name} of "
                f"operator set {schema.since_version} does not have"
            )
        if int(declared.type) != attribute.type:
            kinds = AttributeProto.AttributeType
            raise ModelError(
                f"{where}: attribute {attribute.name!r} is of the type "
                f"{kinds.Name(attribute.type)}, not {kinds.Name(int(declared.type))}"
            )
        check_value(schema.name, attribute, where)
    required = {name for name, declared in schema.attributes.items() if declared.required}
    # A hint about memory that no file of that time has.
    _check_required(required - {"consumed_inputs"}, given, where)


def _check_inputs(node: NodeProto, marks: str, fewest: int, where: str) -> None:
    """Raise unless the inputs of `node` are as `marks` tell: r, o and v as above."""
    count = len(node.input)
    while count and not node.input[count - 1]:
        count -= 1
    repeated = marks.endswith("v")
    if count > len(marks) and not repeated:
        raise ModelError(f"{where}: has {count} inputs; it takes {_between(fewest, len(marks))}")
    needed = max(fewest, len(marks.rstrip("ov")))
    for index in range(max(count, needed)):
        mark = marks[min(index, len(marks) - 1)] if marks else "r"
        missing = index >= count or not node.input[index]
        if missing and (mark in "rv" or (index < fewest and mark != "o")):
            raise ModelError(f"{where}: input number {index}, which is required, is left out")


def _check_required(required: Iterable[str], given: set[str], where: str) -> None:
    for name in required:
        if name not in given:
            raise ModelError(f"{where}: the attribute {name!r} is missing")


def _check_attribute(attribute: AttributeProto, where: str, function: FunctionProto | None) -> None:
    if attribute.ref_attr_name:
        if function is None:
            raise ModelError(
                f"{where}: attribute {attribute.name!r} refers to one of a function, outside any"
            )
        return
    if attribute.type not in AttributeProto.AttributeType.values() or not attribute.type:
        raise ModelError(f"{where}: attribute {attribute.name!r} has no type that is known")
    field = _MESSAGES.get(attribute.type)
    if field is not None and not attribute.HasField(field):
        raise ModelError(f"{where}: attribute {attribute.name!r} is empty")


def _formal(formals: Sequence[OpSchema.FormalParameter], index: int) -> OpSchema.FormalParameter:
    """The declaration of the input or output of that number; the last one may be repeated."""
    return formals[min(index, len(formals) - 1)] if formals else None


@cache
def _schema(name: str, version: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(name, version, "")
    except (onnx.defs.SchemaError, TypeError, OverflowError):
        return None


@cache
def _allowed(name: str, version: int, index: int) -> frozenset[str]:
    """The classes of types that an input takes, and "sequence" for sequences."""
    return _classes(onnx.defs.get_schema(name, version, "").inputs[index])


@cache
def _produced(name: str, version: int, index: int) -> frozenset[str]:
    """The classes of types that an output has, and "sequence" for sequences."""
    return _classes(onnx.defs.get_schema(name, version, "").outputs[index])


def _classes(formal: OpSchema.FormalParameter) -> frozenset[str]:
    classes = set()
    for text in formal.types:
        inner = text.removeprefix("optional(")
        classes.add("sequence" if inner.startswith("seq(") else _class_of(inner))
    return frozenset(classes)


def _class_of(kind: str) -> str:
    name = kind.removeprefix("sparse_").removeprefix("tensor(")
    for told, beginnings in _CLASSES:
        if name.startswith(beginnings):
            return told
    return name


def _between(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high if high < 2**31 - 1 else 'any number'}"
