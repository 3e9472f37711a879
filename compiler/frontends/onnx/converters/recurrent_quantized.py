"""LSTM with weights in codes, whose inputs are quantised as they come.

ONNX Runtime quantises the whole input once, and the hidden state anew in every step; so does this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.frontends.onnx.converters import constants as c
from tinsmith.compiler.frontends.onnx.converters.quantized_integer import DynamicQuantizeMatMul
from tinsmith.compiler.frontends.onnx.converters.recurrent import lstm_workload
from tinsmith.targets.operators import QuantizedLstm, pack_recurrent


class DynamicQuantizeLSTM(OnnxOpConverter):
    """LSTM of X (T, B, I) by codes W (D, I, 4 H) and R (D, H, 4 H).

    The input projection is one integer product, the rest one kernel. Sequences of a batch are
    quantised each by its own range.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, weights, recurrent, bias, lengths, hidden, cell, peepholes = (
            inputs[i] for i in range(8)
        )
        steps, batch, features = c.static_shape(x)
        size = c.static_shape(recurrent)[1]
        known = c.as_numpy(lengths)
        if lengths is not None and known is not None and np.all(known == steps):
            lengths = None
        if attr.get("layout", 0):
            raise ValueError("layout=1 is not supported")
        workload = replace(
            lstm_workload(attr, steps, batch, size),
            has_peepholes=peepholes is not None,
            has_lengths=lengths is not None,
        )
        directions, width = workload.directions, 4 * size
        rows = c.reshape(bb, x, (steps * batch, features))
        columns = (directions * width,)
        operands = [
            rows,
            c.reshape(bb, c.transpose(bb, weights, (1, 0, 2)), (features, *columns)),
            _for_columns(bb, inputs[8], directions, width),
            None if inputs[9] is None else _for_columns(bb, inputs[9], directions, width),
            None,
        ]
        projected = DynamicQuantizeMatMul._impl_v1(bb, onnx_input(operands), attr, params)
        if bias is not None:
            halves = [c.slice_axis(bb, bias, 1, i * width, (i + 1) * width) for i in (0, 1)]
            total = c.reshape(bb, c.add(bb, *halves), columns)
            projected = relax.op.add(bb.emit(projected), total)
        projected = bb.emit(projected)
        codes, scales = _recurrent_codes(recurrent, inputs[10], inputs[11])
        packed = pack_recurrent(codes)
        kernel = QuantizedLstm(workload, packed.shape)
        state = (directions, batch, size)
        arguments = [
            c.reshape(bb, projected, (steps, batch, directions * width)),
            c.constant(packed),
            c.constant(scales),
            c.constant(codes.sum(1, dtype=np.int32)),
            c.zeros(state, "float32") if hidden is None else hidden,
            c.zeros(state, "float32") if cell is None else cell,
            peepholes,
            None if lengths is None else bb.emit(relax.op.astype(lengths, "int32")),
        ]
        results = bb.emit(
            relax.call_tir(
                bb.add_func(kernel.function(), "quantized_lstm"),
                relax.Tuple([argument for argument in arguments if argument is not None]),
                [
                    relax.TensorType((steps, *state), "float32"),
                    relax.TensorType(state, "float32"),
                    relax.TensorType(state, "float32"),
                    relax.TensorType(kernel.scratch_shapes[0], "int8"),
                    relax.TensorType(kernel.scratch_shapes[1], "float32"),
                ],
            )
        )
        return relax.Tuple([bb.emit(relax.TupleGetItem(results, index)) for index in range(3)])


def _for_columns(
    bb: relax.BlockBuilder, values: relax.Expr, directions: int, width: int
) -> relax.Expr:
    """(D) or (D, 4 H) values as one for all columns of the input projection, or one for each."""
    if len(c.static_shape(values)) > 1:
        return c.reshape(bb, values, (directions * width,))
    if directions == 1:
        return c.reshape(bb, values, ())
    known = c.as_numpy(values)
    if known is not None:
        return c.constant(known.repeat(width))
    return bb.emit(relax.op.repeat(values, width))


def _recurrent_codes(
    codes: relax.Expr, scale: relax.Expr, zero_point: relax.Expr | None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (D, H, 4 H) less their zero points in int16, and scales (D, 4 H).

    Raises ValueError if they depend on data.
    """
    known = [c.as_numpy(value) for value in (codes, scale)]
    offsets = c.as_numpy(zero_point)
    if any(value is None for value in known) or (zero_point is not None and offsets is None):
        raise ValueError("recurrent weights that depend on data are not supported")
    levels, factors = np.asarray(known[0]), np.asarray(known[1], np.float32)
    directions, _, width = levels.shape
    centred = levels.astype(np.int16)
    if offsets is not None:
        centred = centred - offsets.astype(np.int16).reshape(directions, 1, -1)
    return centred, np.broadcast_to(factors.reshape(directions, -1), (directions, width)).copy()
