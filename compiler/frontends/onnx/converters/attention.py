"""Attention as ONNX Runtime's optimizer writes it: `com.microsoft.Attention` and its relatives.

Shapes: B batch, S queries, T keys (past ones included), N heads, H entries of a head.
All of them become a product with the keys, a softmax over T and a product with the values.
Masks are additive, as in ONNX Runtime: what is masked out gets `mask_filter_value`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    add,
    as_numpy,
    concat,
    constant,
    dtype_of,
    reshape,
    slice_axis,
    static_shape,
    transpose,
)
from tinsmith.compiler.frontends.onnx.converters.quantized_linear import Operands

_MASKED = -10000.0


def attend(
    bb: relax.BlockBuilder,
    query: relax.Expr,
    key: relax.Expr,
    value: relax.Expr,
    scale: float,
    biases: Sequence[relax.Expr],
    softcap: float = 0.0,
    sink: relax.Expr | None = None,
) -> relax.Expr:
    """softmax(query key^T scale + biases) value, of (B, N, S, H), (B, N, T, H), (B, N, T, H').

    Scores stay within `softcap` if that is not 0; `sink`, of a shape that broadcasts to
    (B, N, S, 1), is the score of one more key, which has no value.
    """
    keys = transpose(bb, key, (0, 1, 3, 2))
    scores = bb.emit(relax.op.matmul(query, keys))
    if scale != 1.0:
        scores = bb.emit(relax.op.multiply(scores, relax.const(scale, dtype_of(scores))))
    if softcap:
        cap = relax.const(softcap, dtype_of(scores))
        bent = relax.op.tanh(relax.op.divide(scores, cap))
        scores = bb.emit(relax.op.multiply(bent, cap))
    for bias in biases:
        scores = bb.emit(relax.op.add(scores, bias))
    keys_count = static_shape(scores)[-1]
    if sink is not None:
        column = bb.emit(relax.op.broadcast_to(sink, (*static_shape(scores)[:3], 1)))
        scores = concat(bb, [scores, column], 3)
    weights = bb.emit(relax.op.nn.softmax(scores, axis=-1))
    if sink is not None:
        weights = slice_axis(bb, weights, 3, 0, keys_count)
    return bb.emit(relax.op.matmul(weights, value))


def heads(bb: relax.BlockBuilder, x: relax.Expr, count: int) -> relax.Expr:
    """(B, S, N H) as (B, N, S, H)."""
    batch, length, width = static_shape(x)
    if width % count:
        raise ValueError(f"{width} entries cannot be shared out among {count} heads")
    return transpose(bb, reshape(bb, x, (batch, length, count, width // count)), (0, 2, 1, 3))


def joined(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    """(B, N, S, H) as (B, S, N H)."""
    batch, count, length, width = static_shape(x)
    return reshape(bb, transpose(bb, x, (0, 2, 1, 3)), (batch, length, count * width))


def mask_bias(
    bb: relax.BlockBuilder, mask: relax.Expr, queries: int, keys: int, batch: int, filled: float
) -> relax.Expr:
    """What `mask` adds to scores (B, N, S, T): `filled` where a key must not be seen.

    The mask is a number of keys for each batch entry, (B,); their ends, then their beginnings,
    (2 B,); ones and zeros for each key, (B, T), for each query and key, (B, S, T), or for more
    positions than there are, (B, 1, M, M).
    """
    shape = static_shape(mask)
    if len(shape) == 1:
        position = constant(np.arange(keys, dtype=np.int64).reshape(1, 1, 1, keys))

        def bound(index: int) -> relax.Expr:
            part = slice_axis(bb, mask, 0, index * batch, (index + 1) * batch)
            return bb.emit(relax.op.astype(reshape(bb, part, (batch, 1, 1, 1)), "int64"))

        if shape[0] not in (batch, 2 * batch):
            raise ValueError(f"a mask of {list(shape)} for {batch} sequences is not supported")
        hidden = bb.emit(relax.op.greater_equal(position, bound(0)))
        if shape[0] == 2 * batch:
            early = relax.op.less(position, bound(1))
            hidden = bb.emit(relax.op.logical_or(hidden, early))
    else:
        if len(shape) == 4:
            mask = slice_axis(bb, mask, 2, keys - queries, keys)
            mask = slice_axis(bb, mask, 3, 0, keys)
            wanted = static_shape(mask)
        else:
            rows = 1 if len(shape) == 2 else shape[1]
            wanted = (shape[0], 1, rows, shape[-1])
            mask = reshape(bb, mask, wanted)
        if wanted[-1] != keys or wanted[0] not in (1, batch) or wanted[2] not in (1, queries):
            raise ValueError(f"a mask of {list(shape)} does not fit {queries} queries, {keys} keys")
        integers = bb.emit(relax.op.astype(mask, "int32"))
        hidden = bb.emit(relax.op.equal(integers, relax.const(0, "int32")))
    return bb.emit(
        relax.op.where(hidden, relax.const(filled, "float32"), relax.const(0.0, "float32"))
    )


def causal_bias(queries: int, keys: int, filled: float) -> relax.Expr:
    """What hides the keys behind each query; the queries are the last of the keys."""
    seen = np.arange(keys)[None, :] <= np.arange(keys - queries, keys)[:, None]
    return constant(np.where(seen, 0.0, filled).astype(np.float32).reshape(1, 1, queries, keys))


def _biases(
    bb: relax.BlockBuilder,
    mask: relax.Expr | None,
    bias: relax.Expr | None,
    sizes: tuple[int, int, int],
    attr: Any,
    dtype: str,
) -> list[relax.Expr]:
    """All that is added to the scores; `sizes` are queries, keys and batch."""
    queries, keys, batch = sizes
    filled = attr.get("mask_filter_value", _MASKED)
    found = []
    if mask is not None:
        found.append(mask_bias(bb, mask, queries, keys, batch, filled))
    if attr.get("unidirectional", 0) and queries > 1:
        lowest = float(np.finfo(np.float32).min) if mask is None else filled
        found.append(causal_bias(queries, keys, lowest))
    found = [bb.emit(relax.op.astype(b, dtype)) if dtype_of(b) != dtype else b for b in found]
    return found if bias is None else [*found, bias]


def scale_of(attr: Any, width: int) -> float:
    return attr.get("scale") or 1.0 / math.sqrt(width)


def refuse(attr: Any, **neutral: int) -> None:
    """ValueError for an attribute that asks for more than is done."""
    for name, value in neutral.items():
        if attr.get(name, value) != value:
            raise ValueError(f"{name}={attr[name]} is not supported")


class Attention(OnnxOpConverter):
    """Queries, keys and values from one product; in and out are (B, S, D)."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, weight, bias = inputs[0], inputs[1], inputs[2]
        product = bb.emit(relax.op.matmul(x, weight))
        return cls._attended(bb, product, bias, inputs[3], inputs[4], inputs[5], attr)

    @classmethod
    def _attended(
        cls,
        bb: Any,
        product: relax.Expr,
        bias: relax.Expr | None,
        mask: relax.Expr | None,
        past: relax.Expr | None,
        added: relax.Expr | None,
        attr: Any,
    ) -> relax.Expr:
        refuse(attr, do_rotary=0, past_present_share_buffer=0)
        count = attr["num_heads"]
        if bias is not None:
            product = bb.emit(relax.op.add(product, bias))
        batch, length, width = static_shape(product)
        sizes = attr.get("qkv_hidden_sizes") or (width // 3,) * 3
        parts, start = [], 0
        for size in sizes:
            parts.append(heads(bb, slice_axis(bb, product, 2, start, start + size), count))
            start += size
        query, key, value = parts
        if past is not None:
            before = [
                reshape(bb, slice_axis(bb, past, 0, i, i + 1), static_shape(past)[1:])
                for i in (0, 1)
            ]
            key, value = (concat(bb, pair, 2) for pair in zip(before, (key, value), strict=True))
        keys = static_shape(key)[2]
        biases = _biases(bb, mask, added, (length, keys, batch), attr, dtype_of(product))
        scale = scale_of(attr, static_shape(query)[3])
        result = joined(bb, attend(bb, query, key, value, scale, biases))
        if attr["tvm_custom"]["num_outputs"] < 2:
            return result
        present = [reshape(bb, each, (1, *static_shape(each))) for each in (key, value)]
        return relax.Tuple([result, concat(bb, present, 0)])


class QAttention(Attention):
    """Attention whose product is one of codes; the rest is computed in floats."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        # Codes, scale and zero point stand together in the other quantised operators.
        order = [0, 3, 6, 1, 4, 7]
        dtypes = attr["tvm_custom"]["dtypes"]
        sorted_dtypes = [dtypes[i] if i < len(dtypes) else None for i in order]
        custom = {**attr["tvm_custom"], "dtypes": sorted_dtypes}
        operands = Operands(bb, [inputs[i] for i in order], {**attr, "tvm_custom": custom})
        data = operands.values(0, "the input")
        weights = operands.values(3, "the weight", axis=1)
        product = bb.emit(relax.op.matmul(data, weights))
        return cls._attended(bb, product, inputs[2], inputs[5], inputs[8], None, attr)


class MultiHeadAttention(OnnxOpConverter):
    """Queries, keys and values of their own, apart or packed, with what was computed before."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        query, key, value, bias, mask, added, past_key, past_value = (inputs[i] for i in range(8))
        if inputs[8] is not None or inputs[9] is not None:
            raise ValueError("a shared buffer of keys and values is not supported")
        count = attr["num_heads"]
        query, key, value = cls._apart(bb, query, key, value)
        if bias is not None:
            query, key, value = cls._biased(bb, query, key, value, bias)
        parts = [
            x if len(static_shape(x)) == 4 else heads(bb, x, count) for x in (query, key, value)
        ]
        query, key, value = parts
        if past_key is not None and past_value is not None:
            key, value = concat(bb, [past_key, key], 2), concat(bb, [past_value, value], 2)
        batch, _, queries, width = static_shape(query)
        sizes = (queries, static_shape(key)[2], batch)
        biases = _biases(bb, mask, added, sizes, attr, dtype_of(query))
        result = joined(bb, attend(bb, query, key, value, scale_of(attr, width), biases))
        wanted = attr["tvm_custom"]["num_outputs"]
        return result if wanted < 2 else relax.Tuple([result, key, value][:wanted])

    @staticmethod
    def _apart(
        bb: Any, query: relax.Expr, key: relax.Expr | None, value: relax.Expr | None
    ) -> list[relax.Expr]:
        """The three tensors, which may be packed as (B, S, N, 3, H) or (B, T, N, 2, H)."""

        def unpacked(packed: relax.Expr, number: int) -> list[relax.Expr]:
            batch, length, count, _, width = static_shape(packed)
            return [
                reshape(bb, slice_axis(bb, packed, 3, i, i + 1), (batch, length, count * width))
                for i in range(number)
            ]

        if key is None:
            return unpacked(query, 3)
        if value is None:
            return [query, *unpacked(key, 2)]
        return [query, key, value]

    @staticmethod
    def _biased(
        bb: Any, query: relax.Expr, key: relax.Expr, value: relax.Expr, bias: relax.Expr
    ) -> list[relax.Expr]:
        start, results = 0, []
        width = static_shape(query)[-1]
        for x, size in ((query, width), (key, width), (value, None)):
            if len(static_shape(x)) == 4:  # of an encoder, biased before
                results.append(x)
                continue
            stop = static_shape(bias)[0] if size is None else start + size
            results.append(add(bb, x, slice_axis(bb, bias, 0, start, stop)))
            start = stop
        return results


class RotaryEmbedding(OnnxOpConverter):
    """Pairs of entries turned by an angle that grows with the position."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, positions, cosine, sine = inputs[0], inputs[1], inputs[2], inputs[3]
        refuse(attr, is_packed_batching=0)
        shape = static_shape(x)
        whole = attr.get("rotary_embedding_dim", 0)
        if len(shape) == 3:
            count = attr.get("num_heads", 0) or shape[2] // (whole or 2 * static_shape(cosine)[1])
            x = heads(bb, x, count)
        length = static_shape(x)[2]
        if static_shape(positions) in ((1,), ()):
            steps = constant(np.arange(length, dtype=np.int64).reshape(1, length))
            first = reshape(bb, positions, (1, 1))
            positions = bb.emit(relax.op.add(first, steps))
        turned = rotated(bb, x, positions, cosine, sine, bool(attr.get("interleaved", 0)))
        return joined(bb, turned) if len(shape) == 3 else turned


def rotated(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    positions: relax.Expr,
    cosine: relax.Expr,
    sine: relax.Expr,
    interleaved: bool,
) -> relax.Expr:
    """`x` (B, N, S, H) with its first 2 R entries turned; the tables are (M, R)."""
    batch, count, length, width = static_shape(x)
    largest, half = static_shape(cosine)
    known = as_numpy(positions)
    if known is None:
        limited = relax.op.clip(positions, 0, largest - 1)
        positions = bb.emit(limited)
    angles = []
    for table in (cosine, sine):
        rows = bb.emit(relax.op.take(table, positions, axis=0, mode="clip"))
        angles.append(reshape(bb, rows, (static_shape(rows)[0], 1, length, half)))
    turned = slice_axis(bb, x, 3, 0, 2 * half)
    if interleaved:
        pairs = reshape(bb, turned, (batch, count, length, half, 2))
        real, imaginary = (
            reshape(bb, slice_axis(bb, pairs, 4, i, i + 1), (batch, count, length, half))
            for i in (0, 1)
        )
    else:
        real, imaginary = (slice_axis(bb, turned, 3, i * half, (i + 1) * half) for i in (0, 1))
    cos, sin = angles
    multiply = relax.op.multiply
    left = bb.emit(relax.op.subtract(multiply(real, cos), multiply(imaginary, sin)))
    right = bb.emit(relax.op.add(multiply(real, sin), multiply(imaginary, cos)))
    if interleaved:
        columns = [reshape(bb, part, (batch, count, length, half, 1)) for part in (left, right)]
        result = reshape(bb, concat(bb, columns, 4), (batch, count, length, 2 * half))
    else:
        result = concat(bb, [left, right], 3)
    if 2 * half == width:
        return result
    return concat(bb, [result, slice_axis(bb, x, 3, 2 * half, width)], 3)
