"""Replacing calls of functions by their bodies.

An ONNX function is an operator defined by other operators: by the model itself, or by the
standard (Celu, LpNormalization, SoftmaxCrossEntropyLoss ...). The former are always
inlined, the latter when no converter knows the operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx.defs
import onnx.helper
import onnx.inliner
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.forked import ToolError
from tinsmith.compiler.frontends.onnx.files import standard_opset
from tinsmith.compiler.frontends.onnx.guard import in_child
from tinsmith.compiler.frontends.onnx.operators import CONTROL_FLOW, domain_of

_INLINED_AT_MOST = 8


def inline_functions(
    model: ModelProto, converters: Mapping[tuple[str, str], object], source: str
) -> ModelProto:
    """`model` without calls to functions, as far as they are not `converters`' business."""
    if not model.functions and not _standard_functions(model, converters):
        return model
    try:
        return in_child(lambda original: _inlined(original, converters), model)
    except ToolError as error:
        raise ModelError(f"{source}: a function cannot be inlined: {error}") from error


def _inlined(model: ModelProto, converters: Mapping[tuple[str, str], object]) -> ModelProto:
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    # The body of a function may call functions in turn.
    for _ in range(_INLINED_AT_MOST):
        wanted = _standard_functions(model, converters)
        if not wanted:
            break
        typed = onnx.shape_inference.infer_shapes(model)
        _declare_initializers(typed)
        _spell_out_defaults(typed, wanted)
        inlined = onnx.inliner.inline_selected_functions(
            typed, sorted(wanted), inline_schema_functions=True
        )
        del inlined.graph.value_info[:]
        if _standard_functions(inlined, converters) == wanted:
            break
        model = inlined
    return model


def _standard_functions(
    model: ModelProto, converters: Mapping[tuple[str, str], object]
) -> set[tuple[str, str]]:
    """Operators of `model` that nobody converts and that the standard defines by others."""
    wanted = set()
    opset = standard_opset(model) or 1
    for node in _nodes(model.graph):
        domain = domain_of(node)
        if domain or (domain, node.op_type) in converters or node.op_type in CONTROL_FLOW:
            continue
        if not onnx.defs.has(node.op_type, opset, domain):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, domain)
        if schema.has_function or schema.has_context_dependent_function:
            wanted.add((node.domain, node.op_type))
    return wanted


def _declare_initializers(model: ModelProto) -> None:
    """Add the types of initializers, which the inliner looks for among the values only."""
    for tensor in model.graph.initializer:
        model.graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    # It also asks for the type of optional inputs that are left out, whose name is empty.
    missing = model.graph.value_info.add()
    missing.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _spell_out_defaults(model: ModelProto, wanted: set[tuple[str, str]]) -> None:
    """Give nodes that will be inlined the attributes they leave out: the inliner forgets them."""
    opset = standard_opset(model) or 1
    for node in _nodes(model.graph):
        if (node.domain, node.op_type) not in wanted:
            continue
        present = {attribute.name for attribute in node.attribute}
        schema = onnx.defs.get_schema(node.op_type, opset, domain_of(node))
        for name, attribute in schema.attributes.items():
            if name not in present and attribute.default_value.name:
                node.attribute.append(attribute.default_value)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)
