"""Initializers that a file stores as their non-zero elements, made dense."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, SparseTensorProto, TensorProto, numpy_helper

from tinsmith.compiler.errors import ModelError, UnsafeModelError
from tinsmith.compiler.frontends.onnx.limits import check_axes

# A dense tensor may take so many elements, whatever few of them are stored.
_MOST_ELEMENTS = 1 << 26


def densify(graph: GraphProto, source: str) -> None:
    """Replace the sparse initializers of `graph` and of its subgraphs by dense ones.

    Raises ModelError for indices that do not fit the shape, or a shape that is too large.
    """
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, source))
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node or subgraph.sparse_initializer:
                    densify(subgraph, source)


def _dense(sparse: SparseTensorProto, source: str) -> TensorProto:
    name = sparse.values.name
    where = f"{source}: sparse tensor {name!r}"
    shape = tuple(sparse.dims)
    check_axes(len(shape), where)
    if any(size < 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise UnsafeModelError(f"{where}: the shape {list(shape)} is not one, or too large")
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    if values.ndim != 1 or (len(values) and indices.size % len(values)):
        raise ModelError(f"{where}: its values and indices differ in number")
    places = indices.reshape(len(values), -1) if len(values) else None
    result = np.zeros(shape, values.dtype)
    if places is not None:
        if indices.dtype != np.int64 or places.shape[1] not in (1, len(shape)):
            raise ModelError(f"{where}: its indices do not fit the shape {list(shape)}")
        flat = places.shape[1] == 1
        limits = np.array([result.size] if flat else shape)
        if (places < 0).any() or (places >= limits).any():
            raise UnsafeModelError(f"{where}: an index lies outside the shape {list(shape)}")
        if flat:
            result.reshape(-1)[places[:, 0]] = values
        else:
            result[tuple(places.T)] = values
    return numpy_helper.from_array(result, name)
