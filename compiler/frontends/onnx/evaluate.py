"""Evaluating single ONNX nodes whose inputs are all known.

The reference evaluator of the onnx package computes them in numpy. It is slow on
heavy operators, so those stay in the graph, as do quantisation nodes (a constant
behind a DequantizeLinear must keep its integers) and random ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx.shape_inference
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from tinsmith.compiler.frontends.onnx.attributes import MOST_AXES
from tinsmith.compiler.frontends.onnx.limits import Budget

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
# Of the operands of others. Those that the evaluator computes by loops in Python take 10 to 50
# microseconds an element, or compare each with each.
_ELEMENT_LIMIT = 1 << 16
_LOOPING_LIMIT = 1 << 11
LOOPING = frozenset(
    {
        "AffineGrid", "Attention", "AveragePool", "Col2Im", "Conv", "ConvInteger",
        "ConvTranspose", "DFT", "DeformConv", "Einsum", "GRU", "GridSample", "LSTM",
        "LinearAttention", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "NonMaxSuppression",
        "QLinearConv", "RNN", "Resize", "ReverseSequence", "RoiAlign", "STFT", "TfIdfVectorizer",
        "Unique", "Upsample",
    }
)  # fmt: skip
# Of one result, unless its operands are as large.
_OUTPUT_LIMIT = 1 << 24
# Operands of at most so many elements tell the shape inference the size of a result.
_KNOWN_ELEMENTS = 64
# They make a large result of small operands.
AMPLIFYING = frozenset(
    {
        "AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape",
        "ConvTranspose", "DFT", "Einsum", "Expand", "EyeLike", "HammingWindow", "HannWindow",
        "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "RandomNormal", "RandomUniform", "Range",
        "Resize", "RoiAlign", "STFT", "Tile", "Upsample",
    }
)  # fmt: skip
# Their results are no larger than their operands times the axes; the shape depends on values.
_SELECTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


def may_evaluate(node: NodeProto) -> bool:
    """Whether `node` is of a kind that is computed at once when all its inputs are known."""
    return node.domain in _STANDARD_DOMAINS and node.op_type not in _KEPT


def evaluate(
    node: NodeProto, inputs: Mapping[str, np.ndarray], opset: int, budget: Budget
) -> Sequence[np.ndarray] | None:
    """The outputs of `node` for `inputs` by name, or None if it should stay in the graph.

    It stays if its result would be large, or more than `budget` has left.
    """
    if not may_evaluate(node):
        return None
    limit = _LOOPING_LIMIT if node.op_type in LOOPING else _ELEMENT_LIMIT
    largest = max((array.size for array in inputs.values()), default=0)
    if node.op_type not in _CHEAP and largest > limit:
        return None
    if node.op_type == "Constant":
        # The optimizer writes lists of numbers into models whose version had tensors only.
        opset = max(opset, _LISTS_IN_CONSTANTS)
    else:
        nbytes = _result_bytes(node, inputs, opset, limit if node.op_type in LOOPING else None)
        if nbytes is None or not budget.may_fold(nbytes):
            return None
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


def _result_bytes(
    node: NodeProto, inputs: Mapping[str, np.ndarray], opset: int, limit: int | None
) -> int | None:
    """Bytes of the results of `node`, told by the shape inference for this one node.

    None if that cannot tell, or if a result has more than `limit` elements.
    """
    largest = max((array.size for array in inputs.values()), default=0)
    if node.op_type in _SELECTING:
        return 64 * largest
    shapes = predicted_shapes(
        node, {name: (array.dtype, array.shape) for name, array in inputs.items()}, inputs, opset
    )
    if shapes is None:
        return None
    total = 0
    for shape in (*shapes, *broadcast_shapes(inputs.values())):
        sizes = [size for size in shape if size is not None]
        if len(shape) > MOST_AXES or len(sizes) < len(shape):
            return None
        elements = math.prod(sizes)
        if elements > (limit or max(_OUTPUT_LIMIT, largest)):
            return None
        total += 8 * elements
    return total


def predicted_shapes(
    node: NodeProto,
    types: Mapping[str, tuple[np.dtype, Sequence[int]]],
    known: Mapping[str, np.ndarray],
    opset: int,
) -> list[list[int | None]] | None:
    """The shapes of the outputs of a standard node, told by onnx's inference for it alone.

    `types` has dtype and shape of every input, `known` the values of some, of which small ones
    are asked. None if a shape cannot be told.
    """
    described = {
        name: onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
        for name, (dtype, shape) in types.items()
    }
    values = {
        name: onnx.numpy_helper.from_array(array, name)
        for name, array in known.items()
        if array.size <= _KNOWN_ELEMENTS
    }
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        results = onnx.shape_inference.infer_node_outputs(
            schema, node, described, values, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception:  # a node that contradicts itself: the converter will say how
        return None
    shapes: list[list[int | None]] = []
    for name in filter(None, node.output):
        result = results.get(name)
        if result is None or not result.tensor_type.HasField("shape"):
            return None
        dims = result.tensor_type.shape.dim
        shapes.append([dim.dim_value if dim.HasField("dim_value") else None for dim in dims])
    return shapes


def broadcast_shapes(operands: Iterable[np.ndarray]) -> list[list[int | None]]:
    """The shape of all operands together, if they have one: numpy makes it of any.

    Also where the standard says that one of them alone gives the shape of the result.
    """
    try:
        return [list(np.broadcast_shapes(*(operand.shape for operand in operands)))]
    except ValueError:
        return []


def _value(name: str) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto()
    value.name = name
    return value
