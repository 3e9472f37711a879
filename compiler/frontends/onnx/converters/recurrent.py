"""Converters for LSTM, GRU and RNN.

X (T, B, I) -> one matrix product with all input weights -> (T, B, D*G*H)
            -> T == 1: Relax operators; T > 1: one kernel with the time loop
            -> Y (T, D, B, H), final states (D, B, H)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters import constants as c
from tinsmith.targets.operators import (
    Activation,
    RecurrentWorkload,
    gru_update,
    lstm_step,
    read_activations,
    recurrent_kernel,
)

_DEFAULT_ACTIVATIONS = {
    "lstm": ("Sigmoid", "Tanh", "Tanh"),
    "gru": ("Sigmoid", "Tanh"),
    "rnn": ("Tanh",),
}
_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class TensorArithmetic:
    """`Arithmetic` on Relax tensors."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def const(self, value: float) -> relax.Expr:
        return relax.const(value, self._dtype)

    def exp(self, x: relax.Expr) -> relax.Expr:
        return relax.op.exp(x)

    def log(self, x: relax.Expr) -> relax.Expr:
        return relax.op.log(x)

    def abs(self, x: relax.Expr) -> relax.Expr:
        return relax.op.abs(x)

    def tanh(self, x: relax.Expr) -> relax.Expr:
        return relax.op.tanh(x)

    def sigmoid(self, x: relax.Expr) -> relax.Expr:
        return relax.op.sigmoid(x)

    def maximum(self, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return relax.op.maximum(x, y)

    def minimum(self, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return relax.op.minimum(x, y)

    def select_non_negative(self, sign: relax.Expr, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return relax.op.where(relax.op.greater_equal(sign, self.const(0.0)), x, y)


@dataclass(frozen=True)
class _Operands:
    """The prepared inputs; shapes as in `recurrent_kernel`. Absent ones are None."""

    projected: relax.Expr
    recurrent: relax.Expr
    hidden: relax.Expr
    cell: relax.Expr | None
    peepholes: relax.Expr | None
    recurrent_bias: relax.Expr | None
    lengths: relax.Expr | None


def _convert(
    kind: str, bb: relax.BlockBuilder, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> relax.Tuple:
    x, weights, recurrent, bias, lengths, hidden = (inputs[index] for index in range(6))
    cell, peepholes = (inputs[6], inputs[7]) if kind == "lstm" else (None, None)
    batch_first = bool(attributes.get("layout", 0))
    if batch_first:
        x = c.transpose(bb, x, (1, 0, 2))
        hidden = None if hidden is None else c.transpose(bb, hidden, (1, 0, 2))
        cell = None if cell is None else c.transpose(bb, cell, (1, 0, 2))
    steps, batch, _ = c.static_shape(x)
    size = c.static_shape(recurrent)[2]
    workload = _workload(kind, attributes, steps, batch, size, c.dtype_of(x))
    _check_shapes(inputs, workload, c.static_shape(x)[2])
    known = c.as_numpy(lengths)
    if lengths is not None and known is not None and np.all(known == steps):
        lengths = None
    linear = kind == "gru" and workload.linear_before_reset
    input_bias, candidate_bias = _biases(bb, bias, workload, linear)
    state = (workload.directions, batch, size)
    operands = _Operands(
        projected=_project(bb, x, weights, input_bias),
        recurrent=c.transpose(bb, recurrent, (0, 2, 1)),
        hidden=c.zeros(state, workload.dtype) if hidden is None else hidden,
        cell=(c.zeros(state, workload.dtype) if cell is None else cell) if kind == "lstm" else None,
        peepholes=peepholes,
        recurrent_bias=candidate_bias,
        lengths=lengths,
    )
    workload = replace(
        workload, has_peepholes=peepholes is not None, has_lengths=lengths is not None
    )
    compute = _one_step if steps == 1 and lengths is None else _time_loop
    sequence, *finals = compute(bb, workload, operands)
    if batch_first:
        sequence = bb.emit(relax.op.permute_dims(sequence, [2, 0, 1, 3]))
        finals = [bb.emit(relax.op.permute_dims(final, [1, 0, 2])) for final in finals]
    return relax.Tuple([sequence, *finals])


def lstm_workload(
    attributes: Mapping[str, Any], steps: int, batch: int, hidden: int
) -> RecurrentWorkload:
    """What the attributes of an LSTM of float32 ask for."""
    return _workload("lstm", attributes, steps, batch, hidden, "float32")


def _workload(
    kind: str, attributes: Mapping[str, Any], steps: int, batch: int, hidden: int, dtype: str
) -> RecurrentWorkload:
    direction = attributes.get("direction", b"forward").decode()
    if direction not in _REVERSE:
        raise ValueError(f"unknown direction {direction!r}")
    reverse = _REVERSE[direction]
    given = [name.decode() for name in attributes.get("activations", ())]
    per_direction = len(_DEFAULT_ACTIVATIONS[kind])
    names = given or list(_DEFAULT_ACTIVATIONS[kind]) * len(reverse)
    if len(names) != per_direction * len(reverse):
        raise ValueError(f"{len(names)} activations instead of {per_direction * len(reverse)}")
    activations = read_activations(
        names,
        attributes.get("activation_alpha", ()),
        attributes.get("activation_beta", ()),
        attributes.get("clip"),
    )
    if kind == "lstm":
        # The standard says "the input of activations", but ONNX Runtime, which everybody's
        # results come from, clips the gates and leaves the cell state alone.
        activations[2::3] = [replace(function, clip=None) for function in activations[2::3]]
    functions: list[tuple[Activation, ...]] = [
        tuple(activations[start : start + per_direction])
        for start in range(0, len(activations), per_direction)
    ]
    return RecurrentWorkload(
        kind,
        steps,
        batch,
        hidden,
        dtype,
        tuple(functions),
        reverse,
        linear_before_reset=bool(attributes.get("linear_before_reset", 0)),
        couple_forget=bool(attributes.get("input_forget", 0)),
    )


def _check_shapes(inputs: Sequence[Any], w: RecurrentWorkload, features: int) -> None:
    """Raise ValueError for weights, a bias or peepholes of another shape than x asks for."""
    directions, columns = w.directions, w.gate_count * w.hidden
    expected = {
        1: (directions, columns, features),
        2: (directions, columns, w.hidden),
        3: (directions, 2 * columns),
        7: (directions, 3 * w.hidden),
    }
    for index, shape in expected.items():
        given = inputs[index] if index < 7 or w.kind == "lstm" else None
        if given is not None and c.static_shape(given) != shape:
            raise ValueError(
                f"input number {index} has the shape {c.static_shape(given)}, not {shape}"
            )


def _biases(
    bb: relax.BlockBuilder, bias: relax.Expr | None, workload: RecurrentWorkload, linear: bool
) -> tuple[relax.Expr | None, relax.Expr | None]:
    """The bias of the input projection (D*G*H), and that of a GRU's linear candidate (D, H)."""
    width, h = workload.gate_count * workload.hidden, workload.hidden
    if bias is None:
        return None, c.zeros((workload.directions, h), workload.dtype) if linear else None
    inputs = c.slice_axis(bb, bias, 1, 0, width)
    recurrent = c.slice_axis(bb, bias, 1, width, 2 * width)
    candidate = None
    if linear:
        # The candidate's recurrent bias is inside the product with the reset gate.
        candidate = c.slice_axis(bb, recurrent, 1, 2 * h, 3 * h)
        gates = c.slice_axis(bb, recurrent, 1, 0, 2 * h)
        none = c.zeros((workload.directions, h), workload.dtype)
        recurrent = c.concat(bb, [gates, none], 1)
    total = c.add(bb, inputs, recurrent)
    return c.reshape(bb, total, (workload.directions * width,)), candidate


def _project(
    bb: relax.BlockBuilder, x: relax.Expr, weights: relax.Expr, bias: relax.Expr | None
) -> relax.Expr:
    """(T, B, I) times the weights of all directions (D, G*H, I): (T, B, D*G*H)."""
    steps, batch, features = c.static_shape(x)
    directions, width, _ = c.static_shape(weights)
    flat = c.reshape(bb, weights, (directions * width, features))
    rows = c.reshape(bb, x, (steps * batch, features))
    product = bb.emit(relax.op.matmul(rows, c.transpose(bb, flat, (1, 0))))
    if bias is not None:
        product = bb.emit(relax.op.add(product, bias))
    return bb.emit(relax.op.reshape(product, (steps, batch, directions * width)))


def _time_loop(
    bb: relax.BlockBuilder, workload: RecurrentWorkload, operands: _Operands
) -> list[relax.Expr]:
    """The results of one call of the kernel."""
    w = workload
    lengths = operands.lengths
    if lengths is not None:
        lengths = bb.emit(relax.op.astype(lengths, "int32"))
    arguments = [
        operands.projected,
        operands.recurrent,
        operands.hidden,
        operands.cell,
        operands.peepholes,
        operands.recurrent_bias,
        lengths,
    ]
    state = (w.directions, w.batch, w.hidden)
    finals = 2 if w.kind == "lstm" else 1
    shapes = [
        (w.steps, *state),
        *[state] * finals,
        (w.directions, w.batch, w.gate_count * w.hidden),
    ]
    function = bb.add_func(recurrent_kernel(w), w.kind)
    results = bb.emit(
        relax.call_tir(
            function,
            relax.Tuple([argument for argument in arguments if argument is not None]),
            [relax.TensorType(shape, w.dtype) for shape in shapes],
        )
    )
    return [bb.emit(relax.TupleGetItem(results, index)) for index in range(1 + finals)]


def _one_step(
    bb: relax.BlockBuilder, workload: RecurrentWorkload, operands: _Operands
) -> list[relax.Expr]:
    """A sequence of one step as plain operators, which other passes can optimise."""
    hidden, cell = [], []
    for direction in range(workload.directions):
        new_hidden, new_cell = _direction_step(bb, workload, operands, direction)
        hidden.append(new_hidden)
        cell.append(new_cell)
    final = c.reshape(
        bb,
        c.concat(bb, hidden, 0) if len(hidden) > 1 else hidden[0],
        (workload.directions, workload.batch, workload.hidden),
    )
    sequence = c.reshape(bb, final, (1, workload.directions, workload.batch, workload.hidden))
    if workload.kind != "lstm":
        return [sequence, final]
    final_cell = c.concat(bb, cell, 0) if len(cell) > 1 else cell[0]
    final_cell = c.reshape(bb, final_cell, (workload.directions, workload.batch, workload.hidden))
    return [sequence, final, final_cell]


def _direction_step(
    bb: relax.BlockBuilder, workload: RecurrentWorkload, operands: _Operands, direction: int
) -> tuple[relax.Expr, relax.Expr | None]:
    """New hidden and cell state, (B, H) each, of one direction."""
    w, h = workload, workload.hidden
    width = w.gate_count * h
    math = TensorArithmetic(w.dtype)

    def of_direction(value: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        return c.reshape(bb, c.slice_axis(bb, value, 0, direction, direction + 1), shape)

    def columns(value: relax.Expr, number: int, count: int = 1) -> relax.Expr:
        return c.slice_axis(bb, value, 1, number * h, (number + count) * h)

    projected = c.reshape(bb, operands.projected, (w.batch, w.directions * width))
    projected = c.slice_axis(bb, projected, 1, direction * width, (direction + 1) * width)
    hidden = of_direction(operands.hidden, (w.batch, h))
    recurrent = of_direction(operands.recurrent, (h, width))
    functions = w.functions[direction]
    if w.kind == "gru":
        f, g = functions
        gates = bb.emit(
            columns(projected, 0, 2) + relax.op.matmul(hidden, columns(recurrent, 0, 2))
        )
        update, reset = bb.emit(f(math, columns(gates, 0))), bb.emit(f(math, columns(gates, 1)))
        if w.linear_before_reset:
            assert operands.recurrent_bias is not None
            bias = of_direction(operands.recurrent_bias, (h,))
            inner = relax.op.matmul(hidden, columns(recurrent, 2)) + bias
            candidate = g(math, columns(projected, 2) + reset * inner)
        else:
            inner = relax.op.matmul(reset * hidden, columns(recurrent, 2))
            candidate = g(math, columns(projected, 2) + inner)
        return bb.emit(gru_update(math, update, bb.emit(candidate), hidden)), None
    gates = bb.emit(projected + relax.op.matmul(hidden, recurrent))
    if w.kind == "rnn":
        return bb.emit(functions[0](math, gates)), None
    assert operands.cell is not None
    peepholes = None
    if operands.peepholes is not None:
        row = of_direction(operands.peepholes, (1, 3 * h))
        peepholes = [columns(row, number) for number in range(3)]
    new_hidden, new_cell = lstm_step(
        math,
        functions,
        [columns(gates, number) for number in range(4)],
        of_direction(operands.cell, (w.batch, h)),
        peepholes,
        w.couple_forget,
    )
    return bb.emit(new_hidden), bb.emit(new_cell)


class LSTM(OnnxOpConverter):
    """Long short-term memory: every direction, activation, peephole and clip of the standard."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _convert("lstm", bb, inputs, attr)


class GRU(OnnxOpConverter):
    """Gated recurrent unit, with the reset before or after the linear transformation."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _convert("gru", bb, inputs, attr)


class RNN(OnnxOpConverter):
    """Plain recurrent network."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _convert("rnn", bb, inputs, attr)
