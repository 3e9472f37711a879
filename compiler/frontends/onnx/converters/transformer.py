"""What ONNX Runtime's optimizer fuses around products and attention in `com.microsoft`."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.frontends.onnx.converters.constants import (
    constant,
    dtype_of,
    static_shape,
    transpose,
)
from tinsmith.compiler.frontends.onnx.converters.gathering import Gather
from tinsmith.compiler.frontends.onnx.converters.normalization import (
    LayerNormalization,
    RMSNormalization,
)


def _alone(attr: Any, **more: Any) -> dict[str, Any]:
    """Attributes for a converter that makes one output."""
    return {"tvm_custom": {**attr["tvm_custom"], "num_outputs": 1}, **more}


class SkipLayerNormalization(OnnxOpConverter):
    """Layer normalisation of input + skip + bias; the sum is the fourth output."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, skip, scale, shift, bias = (inputs[i] for i in range(5))
        total = _sum(bb, x, skip, bias)
        options = {"epsilon": attr.get("epsilon", 1e-5), "axis": -1}
        wanted = attr["tvm_custom"]["num_outputs"]
        # Mean and deviation are there for training; nobody asks for them beside the sum.
        statistics = 3 if 1 < wanted < 4 else 1
        custom = {"tvm_custom": {**attr["tvm_custom"], "num_outputs": statistics}, **options}
        normal = LayerNormalization._impl_v17(bb, [total, scale, shift], custom, params)
        return _with_sum(bb, normal, total, wanted)


class SkipSimplifiedLayerNormalization(OnnxOpConverter):
    """Normalisation of input + skip + bias by its root mean square."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        total = _sum(bb, inputs[0], inputs[1], inputs[3])
        options = _alone(attr, epsilon=attr.get("epsilon", 1e-5), axis=-1)
        normal = RMSNormalization._impl_v23(bb, onnx_input([total, inputs[2]]), options, params)
        return _with_sum(bb, normal, total, attr["tvm_custom"]["num_outputs"])


def _sum(bb: Any, x: relax.Expr, skip: relax.Expr, bias: relax.Expr | None) -> relax.Expr:
    total = bb.emit(relax.op.add(x, skip))
    return total if bias is None else bb.emit(relax.op.add(total, bias))


def _with_sum(bb: Any, normal: relax.Expr, total: relax.Expr, outputs: int) -> relax.Expr:
    if outputs < 2 or isinstance(normal, relax.Tuple):
        return normal
    normal = bb.emit(bb.normalize(normal))
    nothing = constant(np.zeros((), np.float32))
    return relax.Tuple([normal, nothing, nothing, total][:outputs])


class SimplifiedLayerNormalization(OnnxOpConverter):
    """Normalisation by the root mean square, whose inverse is the second output."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, scale = inputs[0], inputs[1]
        axis, epsilon = attr.get("axis", -1), attr.get("epsilon", 1e-5)
        if attr["tvm_custom"]["num_outputs"] == 1:
            options = _alone(attr, axis=axis, epsilon=epsilon)
            return RMSNormalization._impl_v23(bb, onnx_input([x, scale]), options, params)
        rank = len(static_shape(x))
        axes = list(range(axis % rank, rank))
        square = bb.emit(relax.op.mean(relax.op.multiply(x, x), axes, keepdims=True))
        shifted = relax.op.add(square, relax.const(epsilon, dtype_of(x)))
        inverse = bb.emit(relax.op.rsqrt(shifted))
        result = bb.emit(relax.op.multiply(relax.op.multiply(x, inverse), scale))
        return relax.Tuple([result, inverse])


class EmbedLayerNormalization(OnnxOpConverter):
    """Embeddings of words, positions and segments, added and normalised."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        words, segments, of_word, of_position, of_segment = (inputs[i] for i in range(5))
        scale, shift, mask, positions = (inputs[i] for i in range(5, 9))
        batch, length = static_shape(words)

        def rows(table: relax.Expr, indices: relax.Expr) -> relax.Expr:
            return bb.emit(Gather._impl_v1(bb, [table, indices], {"axis": 0}, params))

        if positions is None:
            positions = constant(np.arange(length, dtype=np.int32).reshape(1, length))
        total = bb.emit(relax.op.add(rows(of_word, words), rows(of_position, positions)))
        if segments is not None and of_segment is not None:
            total = bb.emit(relax.op.add(total, rows(of_segment, segments)))
        options = _alone(attr, epsilon=attr.get("epsilon", 1e-12), axis=-1)
        normal = LayerNormalization._impl_v17(bb, [total, scale, shift], options, params)
        outputs = attr["tvm_custom"]["num_outputs"]
        if outputs < 2:
            return normal
        if mask is None:
            counted = constant(np.zeros(batch, np.int32))
        else:
            counted = bb.emit(relax.op.sum(relax.op.astype(mask, "int32"), 1))
        normal = bb.emit(bb.normalize(normal))
        return relax.Tuple([normal, counted, total][:outputs])


class BiasGelu(OnnxOpConverter):
    """gelu(x + bias)"""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return relax.op.nn.gelu(bb.emit(relax.op.add(inputs[0], inputs[1])))


class FastGelu(OnnxOpConverter):
    """gelu(x + bias) by the hyperbolic tangent."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0] if inputs[1] is None else bb.emit(relax.op.add(inputs[0], inputs[1]))
        return relax.op.nn.gelu_tanh(x)


class QuickGelu(OnnxOpConverter):
    """x sigmoid(alpha x)"""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, alpha = inputs[0], attr.get("alpha", 1.702)
        inner = relax.op.multiply(x, relax.const(alpha, dtype_of(x)))
        return relax.op.multiply(x, relax.op.sigmoid(inner))


class FusedMatMul(OnnxOpConverter):
    """alpha A B, with the last two axes swapped, or the first moved before the last."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        operands = [
            _turned(bb, x, attr.get(f"transBatch{side}", 0), attr.get(f"trans{side}", 0))
            for x, side in ((inputs[0], "A"), (inputs[1], "B"))
        ]
        product = bb.emit(relax.op.matmul(*operands))
        alpha = attr.get("alpha", 1.0)
        if alpha == 1.0:
            return product
        return relax.op.multiply(product, relax.const(alpha, dtype_of(product)))


class TransposeMatMul(FusedMatMul):
    """What FusedMatMul was called before."""


def _turned(bb: Any, x: relax.Expr, batch: int, last: int) -> relax.Expr:
    rank = len(static_shape(x))
    order = list(range(rank))
    if batch and rank > 2:
        order = [*order[1:-1], 0, rank - 1]
    if last and rank > 1:
        order[-2:] = order[:-3:-1]
    return x if order == list(range(rank)) else transpose(bb, x, order)


def _activated(bb: Any, x: relax.Expr, name: str, parameters: list[float]) -> relax.Expr:
    """`x` through the activation that a fused operator names."""
    dtype = dtype_of(x)
    given = [relax.const(float(p), dtype) for p in parameters]
    if name == "Relu":
        return relax.op.nn.relu(x)
    if name == "Sigmoid":
        return relax.op.sigmoid(x)
    if name == "Tanh":
        return relax.op.tanh(x)
    if name == "LeakyRelu":
        return relax.op.nn.leakyrelu(x, float(parameters[0]) if parameters else 0.01)
    if name == "Clip" and len(parameters) == 2:
        return relax.op.clip(x, *map(float, parameters))
    if name == "HardSigmoid" and len(given) == 2:
        line = relax.op.add(relax.op.multiply(x, given[0]), given[1])
        return relax.op.clip(bb.emit(line), 0.0, 1.0)
    raise ValueError(f"the activation {name!r} is not supported")


class FusedConv(OnnxOpConverter):
    """Convolution, a sum if there is one, and an activation."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        known = ("activation", "activation_params")
        name, parameters = attr.get(known[0], b"").decode(), attr.get(known[1], ())
        plain = {key: item for key, item in attr.items() if key not in known}
        operands = onnx_input([inputs[i] for i in range(3)])
        result = bb.emit(onnx_frontend.Conv._impl_v11(bb, operands, plain, params))
        if inputs[3] is not None:
            result = bb.emit(relax.op.add(result, inputs[3]))
        return _activated(bb, result, name, list(parameters)) if name else result


class FusedGemm(OnnxOpConverter):
    """General matrix product and an activation."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        name = attr.get("activation", b"").decode()
        parameters = [
            attr[f"activation_{key}"]
            for key in ("alpha", "beta", "gamma")
            if f"activation_{key}" in attr
        ]
        plain = {key: item for key, item in attr.items() if not key.startswith("activation")}
        result = bb.emit(onnx_frontend.Gemm._impl_v13(bb, inputs, plain, params))
        return _activated(bb, result, name, parameters) if name else result


class BiasSoftmax(OnnxOpConverter):
    """softmax(x + bias) over the axes from `axis` on."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, bias = inputs[0], inputs[1]
        shape = static_shape(x)
        axis = attr.get("axis", 1) % len(shape)
        if not attr.get("is_inner_broadcast", 1):
            # The bias holds for the first batch axes; those up to `axis` share it.
            own = static_shape(bias)
            middle = (1,) * (len(shape) - len(own))
            split = axis - len(middle)
            bias = bb.emit(relax.op.reshape(bias, (*own[:split], *middle, *own[split:])))
        total = bb.emit(relax.op.add(x, bias))
        rows = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
        flat = bb.emit(relax.op.nn.softmax(bb.emit(relax.op.reshape(total, rows)), axis=-1))
        return relax.op.reshape(flat, shape)
