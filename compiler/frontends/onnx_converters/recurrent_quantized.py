"""LSTM with weights in codes, whose inputs are quantised as they come.

ONNX Runtime quantises the whole input once, and the hidden state anew in every step; so does this.
The steps are unrolled, for each has scales of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from compiler.frontends.onnx_converters import constants as c
from compiler.frontends.onnx_converters.quantized_integer import DynamicQuantizeMatMul
from compiler.frontends.onnx_converters.recurrent import LSTM, TensorArithmetic, lstm_workload
from compiler.frontends.onnx_converters.recurrent_cells import lstm_step

_MOST_STEPS = 128


class DynamicQuantizeLSTM(OnnxOpConverter):
    """LSTM of X (T, B, I) by codes W (D, I, 4 H) and R (D, H, 4 H).

    Sequences of more than 128 steps are computed with the weights as floats, with a note.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, weights, recurrent, bias, lengths, hidden, cell, peepholes = (
            inputs[i] for i in range(8)
        )
        steps, batch, features = c.static_shape(x)
        size = c.static_shape(recurrent)[1]
        known = c.as_numpy(lengths)
        if lengths is not None and (known is None or np.any(known != steps)):
            raise ValueError("sequences of different lengths are not supported")
        if steps > _MOST_STEPS:
            return cls._in_floats(bb, inputs, attr, params)
        workload = lstm_workload(attr, steps, batch, size)
        math = TensorArithmetic("float32")
        rows = c.reshape(bb, x, (steps * batch, features))
        sequences, hiddens, cells = [], [], []
        for number, backwards in enumerate(workload.reverse):

            def of(value: relax.Expr, number: int = number) -> relax.Expr:
                """The part of this direction."""
                part = c.slice_axis(bb, value, 0, number, number + 1)
                return c.reshape(bb, part, c.static_shape(value)[1:])

            def product(left: relax.Expr, codes: relax.Expr, scales: int) -> relax.Expr:
                operands = [left, of(codes), *(of(inputs[i]) for i in (scales, scales + 1)), None]
                return bb.emit(
                    DynamicQuantizeMatMul._impl_v1(bb, onnx_input(operands), attr, params)
                )

            projected = product(rows, weights, 8)
            if bias is not None:
                halves = [
                    c.slice_axis(bb, of(bias), 0, i * 4 * size, (i + 1) * 4 * size) for i in (0, 1)
                ]
                projected = bb.emit(relax.op.add(projected, c.add(bb, *halves)))
            state, memory = (
                c.zeros((batch, size), "float32") if first is None else of(first)
                for first in (hidden, cell)
            )
            row = None if peepholes is None else c.reshape(bb, of(peepholes), (1, 3 * size))
            doors = row and [c.slice_axis(bb, row, 1, i * size, (i + 1) * size) for i in range(3)]
            outputs: list[relax.Expr] = []
            for step in reversed(range(steps)) if backwards else range(steps):
                own = c.slice_axis(bb, projected, 0, step * batch, (step + 1) * batch)
                gates = bb.emit(relax.op.add(own, product(state, recurrent, 10)))
                columns = [c.slice_axis(bb, gates, 1, i * size, (i + 1) * size) for i in range(4)]
                new, kept = lstm_step(
                    math, workload.functions[number], columns, memory, doors, workload.couple_forget
                )
                state, memory = bb.emit(new), bb.emit(kept)
                outputs.append(state)
            ordered = outputs[::-1] if backwards else outputs
            joined = c.concat(bb, ordered, 0) if steps > 1 else ordered[0]
            sequences.append(c.reshape(bb, joined, (steps, 1, batch, size)))
            hiddens.append(c.reshape(bb, state, (1, batch, size)))
            cells.append(c.reshape(bb, memory, (1, batch, size)))
        return relax.Tuple(
            [
                parts[0] if len(parts) == 1 else c.concat(bb, parts, axis)
                for parts, axis in ((sequences, 1), (hiddens, 0), (cells, 0))
            ]
        )

    @classmethod
    def _in_floats(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        attr["tvm_custom"]["notes"].append(
            f"DynamicQuantizeLSTM {attr['tvm_custom']['name']!r} computes in float32: it has more "
            f"than {_MOST_STEPS} steps"
        )
        floats = []
        for codes, scale in ((inputs[1], 8), (inputs[2], 10)):
            arrays = [c.as_numpy(x) for x in (codes, inputs[scale], inputs[scale + 1])]
            if any(array is None for array in arrays):
                raise ValueError("weights that depend on data are not supported")
            levels, scales, offsets = (np.asarray(array) for array in arrays)
            spread = (scales.shape[0], 1, -1)
            distance = levels.astype(np.float32) - offsets.astype(np.float32).reshape(spread)
            values = (distance * scales.reshape(spread)).astype(np.float32)
            floats.append(c.constant(values.transpose(0, 2, 1)))
        operands = [inputs[0], *floats, *(inputs[i] for i in range(3, 8))]
        return LSTM._impl_v1(bb, onnx_input(operands), attr, params)
