"""Random inputs that a model accepts: floats of unit scale, integers inside their tables.

An integer input is usually an index (token ids into an embedding table). What it
may be is read from the ONNX graph: an index out of range is undefined behaviour
in every runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import ModelError

if TYPE_CHECKING:
    import onnx

    from compiler.module.manifest import TensorEntry

Signature = Mapping[str, tuple[tuple[int, ...], str]]

# Operators through which an index passes unchanged.
_TRANSPARENT = frozenset(
    {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"}
)
# Without a table to look into, 0 and 1 fit every mask, flag and index.
_UNKNOWN_BOUND = 2


def random_inputs(
    signature: Signature, bounds: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """One array for each input; `signature` maps its name to (shape, numpy dtype name).

    Floats are standard normal, integers uniform in [0, bounds[name]), booleans fair.
    Raises ModelError for a dtype that is none of these.
    """
    generator = np.random.default_rng(seed)
    result: dict[str, np.ndarray] = {}
    for name, (shape, dtype_name) in signature.items():
        try:
            dtype = np.dtype(dtype_name)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind == "f":
            result[name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iu":
            high = min(bounds.get(name, _UNKNOWN_BOUND), int(np.iinfo(dtype).max) + 1)
            result[name] = generator.integers(0, high, shape).astype(dtype)
        elif dtype.kind == "b":
            result[name] = generator.integers(0, 2, shape).astype(bool)
        else:
            raise ModelError(f"input {name}: no random values of dtype {dtype_name}")
    return result


def signature_of(tensors: Iterable[TensorEntry]) -> Signature:
    """The signature of a module's inputs, as its manifest lists them."""
    return {t.name: (tuple(int(size) for size in t.shape), t.dtype) for t in tensors}


def index_bounds(model: onnx.ModelProto) -> dict[str, int]:
    """For each integer input that indexes a constant table, how many entries that has.

    An input that reaches several tables gets the smallest. 8-bit inputs that reach
    none are taken for pixels and get their full range.
    """
    graph = model.graph
    tables: dict[str, tuple[int, ...]] = {
        tensor.name: tuple(tensor.dims) for tensor in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tables[node.output[0]] = tuple(node.attribute[0].t.dims)
    origins: dict[str, str] = {}
    pixels: dict[str, int] = {}
    for value in graph.input:
        element = value.type.tensor_type.elem_type
        if value.name not in tables and element in _INTEGER_ELEMENTS:
            origins[value.name] = value.name
            if element in _BYTE_ELEMENTS:
                pixels[value.name] = _BYTE_ELEMENTS[element]
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _TRANSPARENT and node.input and node.input[0] in origins:
            for output in node.output:
                origins[output] = origins[node.input[0]]
        elif node.op_type in ("Gather", "GatherElements") and node.input[1] in origins:
            shape = tables.get(node.input[0])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if shape:
                name = origins[node.input[1]]
                bounds[name] = min(bounds.get(name, shape[axis]), shape[axis])
    return pixels | bounds


# Values of onnx.TensorProto.DataType: (u)int8, (u)int16, (u)int32, (u)int64.
_INTEGER_ELEMENTS = frozenset({2, 3, 4, 5, 6, 7, 12, 13})
_BYTE_ELEMENTS = {2: 256, 3: 128}
