"""The tensors that an ONNX model stores, wherever they are, and how many bytes they take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in the model: initializers and attributes, subgraphs included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)


def tensor_bytes(tensor: TensorProto) -> int:
    """Number of bytes that the elements of `tensor` take when packed, by shape and dtype."""
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    bits = element_bits(tensor.data_type)
    return (elements * bits + 7) // 8


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor.values
        yield attribute.sparse_tensor.indices
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def element_bits(data_type: int) -> int:
    four_bits = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
    two_bits = {getattr(TensorProto, name, -1) for name in ("INT2", "UINT2")}
    if data_type in four_bits:
        return 4
    if data_type in two_bits:
        return 2
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
