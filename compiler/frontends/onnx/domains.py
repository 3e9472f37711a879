"""What the inputs of an ONNX model may be: bounds of operators, traced back to the inputs.

An index stays inside its table, a divisor off zero, the argument of a root or a logarithm in
its domain. A bound is followed from the operator to the inputs through what moves elements
(Reshape, Slice, Concat ...), converts them or adds and multiplies constants; where it meets
anything else it is given up: random numbers cannot be guided through a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from tinsmith.compiler.evaluate.inputs import Domain

_POSITIVE = Domain(low=0.5)
_NOT_NEGATIVE = Domain(low=0)

# By operator: which input is restricted, and to what.
_ARGUMENTS: dict[str, tuple[tuple[int, Domain], ...]] = {
    "Acos": ((0, Domain(-1, 1)),),
    "Acosh": ((0, Domain(low=1)),),
    "Asin": ((0, Domain(-1, 1)),),
    "Atanh": ((0, Domain(-0.9, 0.9)),),
    "BatchNormalization": ((4, _POSITIVE),),
    "Bernoulli": ((0, Domain(0, 1)),),
    "BitShift": ((1, Domain(0, 7)),),
    "DequantizeLinear": ((1, _POSITIVE),),
    "Div": ((1, _POSITIVE),),
    "Log": ((0, Domain(low=0.05)),),
    "Mod": ((1, _POSITIVE),),
    "QuantizeLinear": ((1, _POSITIVE),),
    "Reciprocal": ((0, _POSITIVE),),
    "Sqrt": ((0, _NOT_NEGATIVE),),
}
# By operator that looks things up: its table, its indices, and the attribute or axis looked along.
_LOOKUPS = {
    "Gather": (0, 1, 0),
    "GatherElements": (0, 1, 0),
    "RoiAlign": (0, 2, 0),
    "Scatter": (0, 1, 0),
    "ScatterElements": (0, 1, 0),
    "NegativeLogLikelihoodLoss": (0, 1, 1),
    "SoftmaxCrossEntropyLoss": (0, 1, 1),
}
# Of com.microsoft.EmbedLayerNormalization: ids and the table they index.
_EMBEDDINGS = ((0, 2), (1, 4))
# Operators whose results are elements of these operands (None: of all).
_MOVING: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        (
            "Cast", "CastLike", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
            "GatherElements", "GatherND", "Identity", "MaxPool", "ReduceMax", "ReduceMin",
            "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
            "TopK", "Transpose", "Trilu", "Unsqueeze",
        ),
        (0,),
    ),
    "Concat": None,
    "Max": None,
    "Min": None,
    "Where": (1, 2),
}  # fmt: skip
# Sums, means and products of what is not negative are not negative either.
_KEEP_SIGN = frozenset(
    {
        "Add", "AveragePool", "GlobalAveragePool", "MatMul", "Mul", "ReduceMean", "ReduceProd",
        "ReduceSum", "Sum",
    }
)  # fmt: skip
_UNSIGNED_LIMITS = {
    TensorProto.UINT8: Domain(0, 255),
    TensorProto.UINT16: Domain(0, 65535),
    TensorProto.UINT32: _NOT_NEGATIVE,
    TensorProto.UINT64: _NOT_NEGATIVE,
    TensorProto.INT8: Domain(-128, 127),
}
# 8-bit inputs of which nothing else is known are taken for pixels.
_PIXELS = {TensorProto.UINT8: Domain(0, 255), TensorProto.INT8: Domain(0, 127)}
# Larger constants are tables, not numbers to compute with.
_CONSTANT_LIMIT = 1 << 16


def input_domains(model: onnx.ModelProto) -> dict[str, Domain]:
    """The domain of each input of `model` that has one; its input shapes are fixed."""
    return _Tracer(model).domains()


class _Tracer:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._model = model
        self._nodes = [*_all_nodes(graph.node)]
        self._producers: dict[str, NodeProto] = {}
        for node in self._nodes:
            for name in node.output:
                self._producers.setdefault(name, node)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._tensors.setdefault(node.output[0], node.attribute[0].t)
        self._inputs = {
            value.name: value.type.tensor_type.elem_type
            for value in graph.input
            if value.name not in self._tensors
        }
        self._found: dict[str, Domain] = {}
        self._seen: set[tuple[str, Domain]] = set()
        self._inferred: dict[str, tuple[int, ...]] | None = None

    def domains(self) -> dict[str, Domain]:
        for node in self._nodes:
            for position, domain in self._restrictions(node):
                if position < len(node.input):
                    self._require(node.input[position], domain)
        pixels = {name: _PIXELS[kind] for name, kind in self._inputs.items() if kind in _PIXELS}
        return pixels | self._found

    def _restrictions(self, node: NodeProto) -> Iterator[tuple[int, Domain]]:
        """Positions of operands of `node`, and what they must be."""
        kind = node.op_type
        if kind == "EmbedLayerNormalization":
            for ids, table in _EMBEDDINGS:
                yield from self._index(node, ids, table, 0)
        if kind == "GroupQueryAttention":
            yield from self._cache(node)
        if node.domain not in ("", "ai.onnx"):
            return
        yield from _ARGUMENTS.get(kind, ())
        if kind in _LOOKUPS:
            table, indices, axis = _LOOKUPS[kind]
            distinct = kind.startswith("Scatter")
            yield from self._index(node, indices, table, _integer(node, "axis", axis), distinct)
        elif kind in ("GatherND", "ScatterND"):
            yield from self._tuples(node)
        elif kind == "OneHot":
            depth = self._array(node.input[1])
            if depth is not None and depth.size:
                yield 0, Domain.below(int(depth.max()))
        elif kind == "Cast" and _integer(node, "to", 0) in _UNSIGNED_LIMITS:
            yield 0, _UNSIGNED_LIMITS[_integer(node, "to", 0)]
        elif kind == "Pow":
            yield from self._power(node)
        elif kind in ("LSTM", "GRU", "RNN", "ReverseSequence"):
            shape = self._shape(node.input[0])
            axis = _integer(node, "time_axis", 0)
            if shape and -len(shape) <= axis < len(shape):
                yield (1 if kind == "ReverseSequence" else 4), Domain(1, shape[axis])
        elif kind == "CumSum" and (shape := self._shape(node.input[0])):
            yield 1, Domain.below(len(shape))

    def _index(
        self, node: NodeProto, indices: int, table: int, axis: int, distinct: bool = False
    ) -> Iterator[tuple[int, Domain]]:
        shape = self._shape(node.input[table]) if len(node.input) > table else None
        if shape and -len(shape) <= axis < len(shape) and shape[axis] > 0:
            yield indices, Domain(0, shape[axis] - 1, axis % len(shape) if distinct else None)

    def _tuples(self, node: NodeProto) -> Iterator[tuple[int, Domain]]:
        """Indices of several axes at once: all of them inside the shortest of these axes."""
        data, indices = self._shape(node.input[0]), self._shape(node.input[1])
        skipped = _integer(node, "batch_dims", 0)
        if data and indices:
            sizes = data[skipped : skipped + indices[-1]]
            if sizes and min(sizes) > 0:
                rows = node.op_type == "ScatterND" and len(indices) == 2
                yield 1, Domain(0, min(sizes) - 1, 0 if rows else None)

    def _cache(self, node: NodeProto) -> Iterator[tuple[int, Domain]]:
        """Of an attention with a full cache: the last key of each sequence, and their number."""
        query, past = (self._shape(node.input[i]) for i in (0, 3))
        if query and len(query) == 3:
            keys = query[1] + (past[2] if past and len(past) == 4 else 0)
            yield 5, Domain(keys - 1, keys - 1)
            yield 6, Domain(keys, keys)

    def _power(self, node: NodeProto) -> Iterator[tuple[int, Domain]]:
        exponent = self._array(node.input[1])
        if exponent is None:
            yield 0, Domain(0.5, 2)
            yield 1, Domain(0, 2)
        elif (exponent < 0).any():
            yield 0, _POSITIVE
        elif (exponent != np.round(exponent)).any():
            yield 0, _NOT_NEGATIVE

    def _require(self, name: str, domain: Domain) -> None:
        """Let the value `name` be in `domain`, as far as the inputs it comes from can see to it."""
        pending = [(name, domain)]
        while pending:
            item = pending.pop()
            if item in self._seen:
                continue
            self._seen.add(item)
            name, domain = item
            if name in self._inputs:
                self._found[name] = self._found.get(name, Domain()).within(domain)
            elif name in self._producers:
                pending += self._sources(self._producers[name], domain)

    def _sources(self, node: NodeProto, domain: Domain) -> list[tuple[str, Domain]]:
        """What the operands of `node` must be for its result to be in `domain`."""
        kind = node.op_type
        if node.domain not in ("", "ai.onnx") or self._holds(node, domain):
            return []
        if kind in _MOVING:
            positions = _MOVING[kind]
            names = [n for i, n in enumerate(node.input) if positions is None or i in positions]
            plain = domain if kind in ("Cast", "Identity") else Domain(domain.low, domain.high)
            return [(name, plain) for name in names]
        if kind == "Clip":
            return [(node.input[0], Domain(domain.low, domain.high))]
        if kind in ("Add", "Sub", "Mul", "Div", "Neg"):
            found = self._behind_arithmetic(node, domain)
            if found is not None:
                return found
        if kind in _KEEP_SIGN and domain.low >= 0 and domain.high == math.inf:
            low = max(1.0, domain.low) if domain.low and kind in ("Mul", "MatMul") else domain.low
            return [(name, Domain(low)) for name in node.input[:2] if name]
        return []

    def _holds(self, node: NodeProto, domain: Domain) -> bool:
        """Whether the result is in the domain whatever the operands are."""
        kind = node.op_type
        if domain.high == math.inf and domain.low <= 0:
            always = ("Abs", "Exp", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "HardSigmoid",
                      "ReduceL1", "ReduceL2", "ReduceSumSquare", "Shape", "Size")  # fmt: skip
            if kind in always or (kind == "Mul" and node.input[0] == node.input[1]):
                return True
        if kind in ("Max", "Min", "Clip"):
            low, high = -math.inf, math.inf
            bounds = [self._array(name) for name in node.input[1:] if name]
            known = [float(b.min()) for b in bounds if b is not None and b.size]
            if kind == "Clip":
                names = [*node.input[1:], "", ""][:2]
                limits = [self._array(name) if name else None for name in names]
                low = float(limits[0].min()) if limits[0] is not None else _real(node, "min", low)
                high = float(limits[1].max()) if limits[1] is not None else _real(node, "max", high)
            elif known:
                low, high = (max(known), high) if kind == "Max" else (low, min(known))
            return low >= domain.low and high <= domain.high
        return False

    def _behind_arithmetic(
        self, node: NodeProto, domain: Domain
    ) -> list[tuple[str, Domain]] | None:
        """The domain of the operand that is computed where the other is constant."""
        kind = node.op_type
        if kind == "Neg":
            return [(node.input[0], Domain(-domain.high, -domain.low))]
        left, right = (self._array(name) for name in node.input[:2])
        known = right if right is not None else left
        if known is None or (left is not None and right is not None) or not known.size:
            return None
        small, large = float(known.min()), float(known.max())
        if not (math.isfinite(small) and math.isfinite(large)):
            return []
        name = node.input[0] if right is not None else node.input[1]
        if kind == "Add":
            return [(name, Domain(domain.low - small, domain.high - large))]
        if kind == "Sub" and right is not None:
            return [(name, Domain(domain.low + large, domain.high + small))]
        if kind == "Sub":
            return [(name, Domain(large - domain.high, small - domain.low))]
        if kind == "Div" and right is None:
            return []
        if small <= 0 <= large:
            return []
        factors = (small, large) if kind == "Mul" else (1 / small, 1 / large)
        lows, highs = zip(
            *(sorted((domain.low / f, domain.high / f)) for f in factors), strict=True
        )
        return [(name, Domain(max(lows), min(highs)))]

    def _array(self, name: str) -> np.ndarray | None:
        """The value of a small constant, else None."""
        tensor = self._tensors.get(name)
        if tensor is None:
            node = self._producers.get(name)
            if node is None or node.op_type not in ("Cast", "Identity", "Unsqueeze", "Reshape"):
                return None
            tensor = self._tensors.get(node.input[0])
        if tensor is None or int(np.prod(tensor.dims, dtype=np.float64)) > _CONSTANT_LIMIT:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except Exception:  # external or damaged data: nothing is known then
            return None

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value, inferred by onnx where it is no constant; None if unknown."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        if self._inferred is None:
            self._inferred = _inferred_shapes(self._model)
        return self._inferred.get(name)


def _all_nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The static shapes of the values of the main graph, without the weights' data."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.float64) <= 64:
            light.graph.initializer.append(tensor)
        else:
            entry = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(entry)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # what onnx cannot infer restricts nothing
        return {}
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _real(node: NodeProto, name: str, default: float) -> float:
    return next((float(a.f) for a in node.attribute if a.name == name), default)
