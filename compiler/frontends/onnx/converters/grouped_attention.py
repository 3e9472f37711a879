"""Attention of decoders with a cache: `com.microsoft.GroupQueryAttention`.

Shapes: B batch, S queries, T keys (past ones included), N heads, H entries of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.attention import (
    attend,
    heads,
    joined,
    mask_bias,
    refuse,
    rotated,
    scale_of,
)
from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    concat,
    constant,
    dtype_of,
    reshape,
    slice_axis,
    static_shape,
    zeros,
)

_MASKED = -10000.0


class GroupQueryAttention(OnnxOpConverter):
    """Causal attention in which several heads of queries share one of keys and values.

    `seqlens_k` tells for each sequence its last key. Where it is an input, new keys are written
    behind those of each sequence; the cache is then as long as `total_sequence_length` says, or as
    the past keys and the new ones together if that is an input, too.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        query, key, value, past_key, past_value, lengths = (inputs[i] for i in range(6))
        refuse(attr, k_quant_type=0, v_quant_type=0)
        count, shared = attr["num_heads"], attr["kv_num_heads"]
        if key is None:
            width = static_shape(query)[-1] // (count + 2 * shared)
            stops = np.cumsum([0, count * width, shared * width, shared * width])
            query, key, value = (
                slice_axis(bb, query, 2, int(stops[i]), int(stops[i + 1])) for i in range(3)
            )
        query, key, value = (
            heads(bb, x, n) for x, n in ((query, count), (key, shared), (value, shared))
        )
        batch, _, queries, width = static_shape(query)
        before = 0 if past_key is None else static_shape(past_key)[2]
        keys = before + queries
        known = as_numpy(lengths)
        grows = not before or (known is not None and bool(np.all(known == keys - 1)))
        if grows:
            positions = constant(np.arange(before, keys, dtype=np.int64).reshape(1, queries))
        else:
            keys = max(before, _total(inputs[6], keys))
            first = relax.op.subtract(
                relax.op.astype(reshape(bb, lengths, (batch, 1)), "int64"),
                relax.const(queries - 1, "int64"),
            )
            first = bb.emit(relax.op.clip(bb.emit(first), 0, keys - queries))
            steps = constant(np.arange(queries, dtype=np.int64).reshape(1, queries))
            positions = bb.emit(relax.op.add(first, steps))
        if attr.get("do_rotary", 0):
            style = bool(attr.get("rotary_interleaved", 0))
            turns = positions if inputs[9] is None else inputs[9]
            query, key = (rotated(bb, x, turns, inputs[7], inputs[8], style) for x in (query, key))
        if before and grows:
            key, value = concat(bb, [past_key, key], 2), concat(bb, [past_value, value], 2)
        elif before:
            key, value = (
                _written(bb, past, new, first, keys)
                for past, new in ((past_key, key), (past_value, value))
            )
        dtype = dtype_of(query)
        biases = [_causal(bb, positions, keys, attr.get("local_window_size", -1), dtype)]
        if not before and known is None:
            total = bb.emit(relax.op.add(reshape(bb, lengths, (batch,)), relax.const(1, "int32")))
            hidden = mask_bias(bb, total, queries, keys, batch, _MASKED)
            biases.append(bb.emit(relax.op.astype(hidden, dtype)))
        if inputs[10] is not None:
            biases.append(_fitted(bb, inputs[10], keys))
        each = count // shared
        all_keys, all_values = (
            bb.emit(relax.op.repeat(x, each, 1)) if each > 1 else x for x in (key, value)
        )
        sink = None
        if inputs[11] is not None:
            sink = reshape(bb, inputs[11], (1, count, 1, 1))
        elif attr.get("smooth_softmax", 0) == 1:
            sink = zeros((1, 1, 1, 1), dtype)
        scale, cap = scale_of(attr, width), float(attr.get("softcap", 0.0))
        y = joined(bb, attend(bb, query, all_keys, all_values, scale, biases, cap, sink))
        wanted = attr["tvm_custom"]["num_outputs"]
        return y if wanted < 2 else relax.Tuple([y, key, value][:wanted])


def _total(length: relax.Expr | None, otherwise: int) -> int:
    """The number of keys that a constant tells, or `otherwise`."""
    known = as_numpy(length)
    return otherwise if known is None else int(known.reshape(-1)[0])


def _written(
    bb: relax.BlockBuilder, past: relax.Expr, new: relax.Expr, first: relax.Expr, length: int
) -> relax.Expr:
    """`past` (B, N, P, H) made `length` long, with `new` (B, N, S, H) from `first` (B, 1) on."""
    batch, count, before, width = static_shape(past)
    added = static_shape(new)[2]
    if length > before:
        rest = zeros((batch, count, length - before, width), dtype_of(past))
        past = concat(bb, [past, rest], 2)
    place = constant(np.arange(length, dtype=np.int64).reshape(1, length))
    behind = bb.emit(relax.op.subtract(place, first))
    inside = relax.op.logical_and(
        relax.op.greater_equal(behind, relax.const(0, "int64")),
        relax.op.less(behind, relax.const(added, "int64")),
    )
    column = (batch, 1, length, 1)
    index = reshape(bb, bb.emit(relax.op.clip(behind, 0, added - 1)), column)
    index = bb.emit(relax.op.broadcast_to(index, (batch, count, length, width)))
    spread = bb.emit(relax.op.gather_elements(new, index, axis=2))
    return bb.emit(relax.op.where(reshape(bb, bb.emit(inside), column), spread, past))


def _causal(
    bb: relax.BlockBuilder, positions: relax.Expr, keys: int, window: int, dtype: str
) -> relax.Expr:
    """What hides from queries at `positions` (B, S) the keys behind them, and those before the
    last `window` ones, if that is not negative: (B, 1, S, T).
    """
    rows = (*static_shape(positions), 1)
    place = np.arange(keys, dtype=np.int64).reshape(1, 1, keys)
    lowest = float(np.finfo(np.float32).min)
    known = as_numpy(positions)
    if known is not None:
        at = known.reshape(rows)
        seen = place <= at
        if window >= 0:
            seen &= place > at - window
        bias = np.where(seen, 0.0, lowest).astype(np.float32)[:, None]
        return bb.emit(relax.op.astype(constant(bias), dtype))
    at = bb.emit(relax.op.reshape(positions, rows))
    hidden = relax.op.greater(constant(place), at)
    if window >= 0:
        first = relax.op.subtract(at, relax.const(window, "int64"))
        early = relax.op.less_equal(constant(place), first)
        hidden = relax.op.logical_or(hidden, early)
    bias = relax.op.where(hidden, relax.const(lowest, "float32"), relax.const(0.0, "float32"))
    bias = bb.emit(relax.op.astype(bb.emit(bias), dtype))
    return bb.emit(relax.op.expand_dims(bias, 1))


def _fitted(bb: relax.BlockBuilder, bias: relax.Expr, keys: int) -> relax.Expr:
    """An attention bias (B, N, S, T'), of which the first keys count."""
    return slice_axis(bb, bias, 3, 0, keys) if static_shape(bias)[3] > keys else bias
