"""Evaluating single ONNX nodes whose inputs are all known.

The reference evaluator of the onnx package computes them in numpy. It is slow on
heavy operators, so those stay in the graph, as do quantisation nodes (a constant
behind a DequantizeLinear must keep its integers) and random ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

_STANDARD_DOMAINS = ("", "ai.onnx")
_KEPT = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
    }
)
# Those move or combine elements in plain numpy, whatever their size.
_CHEAP = frozenset(
    {
        "Add", "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Div", "Expand",
        "Flatten", "Gather", "Identity", "MatMul", "Mul", "Neg", "Range", "Reciprocal", "Reshape",
        "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose",
        "Unsqueeze", "Where",
    }
)  # fmt: skip
_LISTS_IN_CONSTANTS = 12
_ELEMENT_LIMIT = 1 << 16
_OUTPUT_LIMIT = 1 << 28


def may_evaluate(node: NodeProto) -> bool:
    """Whether `node` is of a kind that is computed at once when all its inputs are known."""
    return node.domain in _STANDARD_DOMAINS and node.op_type not in _KEPT


def evaluate(
    node: NodeProto, inputs: Mapping[str, np.ndarray], opset: int
) -> Sequence[np.ndarray] | None:
    """The outputs of `node` for `inputs` by name, or None if it should stay in the graph."""
    if not may_evaluate(node):
        return None
    if node.op_type not in _CHEAP and any(array.size > _ELEMENT_LIMIT for array in inputs.values()):
        return None
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range") and not _small(node, inputs):
        return None
    if node.op_type == "Constant":
        # The optimizer writes lists of numbers into models whose version had tensors only.
        opset = max(opset, _LISTS_IN_CONSTANTS)
    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [_value(name) for name in dict.fromkeys(names)],
        [_value(name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, dict(inputs))
    except Exception:
        # The evaluator lacks some operators and old versions of others; the converters, which
        # get their turn now, will explain what is wrong if the node itself is.
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in results):
        return None
    arrays = [np.asarray(result) for result in results]
    return None if any(array.dtype.kind in "OSU" for array in arrays) else arrays


def _small(node: NodeProto, inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether a node that makes a large result of small inputs stays within bounds."""
    values = [inputs[name] for name in node.input if name]
    if not values:
        return True
    if node.op_type == "Range":
        start, limit, delta = (float(value.reshape(-1)[0]) for value in values[:3])
        return delta != 0 and abs((limit - start) / delta) <= _OUTPUT_LIMIT
    sizes = values[-1].astype(object).reshape(-1)
    count = 1 if node.op_type != "Tile" else values[0].size
    for size in sizes:
        count *= max(int(size), 1)
    return count <= _OUTPUT_LIMIT


def _value(name: str) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto()
    value.name = name
    return value
