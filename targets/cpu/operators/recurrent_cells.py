"""One time step of LSTM, GRU and RNN, written once for tensors and for scalars.

The equations are those of the ONNX operator documentation. They are spelled with
Python's operators and the few functions of a `Arithmetic`, so that the same text
serves Relax tensors (a sequence of one step) and the loops of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx

Value = Any  # a Relax tensor or a TensorIR scalar; both overload the operators


class Arithmetic(Protocol):
    """What the equations need besides operators."""

    def const(self, value: float) -> Value: ...
    def exp(self, x: Value) -> Value: ...
    def log(self, x: Value) -> Value: ...
    def abs(self, x: Value) -> Value: ...
    def tanh(self, x: Value) -> Value: ...
    def sigmoid(self, x: Value) -> Value: ...
    def maximum(self, x: Value, y: Value) -> Value: ...
    def minimum(self, x: Value, y: Value) -> Value: ...
    def select_non_negative(self, sign: Value, x: Value, y: Value) -> Value: ...


class ScalarArithmetic:
    """`Arithmetic` on TensorIR expressions."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def const(self, value: float) -> Any:
        return tirx.const(value, self._dtype)

    def exp(self, x: Any) -> Any:
        return tirx.exp(x)

    def log(self, x: Any) -> Any:
        return tirx.log(x)

    def abs(self, x: Any) -> Any:
        return tirx.abs(x)

    def tanh(self, x: Any) -> Any:
        return tirx.tanh(x)

    def sigmoid(self, x: Any) -> Any:
        return tirx.sigmoid(x)

    def maximum(self, x: Any, y: Any) -> Any:
        return tirx.max(x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        return tirx.min(x, y)

    def select_non_negative(self, sign: Any, x: Any, y: Any) -> Any:
        return tirx.Select(sign >= self.const(0.0), x, y)


Function = Callable[[Arithmetic, Value, float, float], Value]


def _leaky_relu(m: Arithmetic, x: Value, alpha: float, beta: float) -> Value:
    return m.select_non_negative(x, x, x * m.const(alpha))


def _thresholded_relu(m: Arithmetic, x: Value, alpha: float, beta: float) -> Value:
    return m.select_non_negative(x - m.const(alpha), x, m.const(0.0))


def _hard_sigmoid(m: Arithmetic, x: Value, alpha: float, beta: float) -> Value:
    return m.minimum(m.maximum(x * m.const(alpha) + m.const(beta), m.const(0.0)), m.const(1.0))


def _elu(m: Arithmetic, x: Value, alpha: float, beta: float) -> Value:
    # The exponent is kept at or below zero: the branch not taken must not overflow.
    below = (m.exp(m.minimum(x, m.const(0.0))) - m.const(1.0)) * m.const(alpha)
    return m.select_non_negative(x, x, below)


def _softplus(m: Arithmetic, x: Value, alpha: float, beta: float) -> Value:
    # log(1 + e^x) without overflow for large x.
    rest = m.log(m.const(1.0) + m.exp(m.const(0.0) - m.abs(x)))
    return m.maximum(x, m.const(0.0)) + rest


# Name in lower case -> the function, default alpha (None: takes none), default beta.
_FUNCTIONS: dict[str, tuple[Function, float | None, float | None]] = {
    "sigmoid": (lambda m, x, a, b: m.sigmoid(x), None, None),
    "tanh": (lambda m, x, a, b: m.tanh(x), None, None),
    "relu": (lambda m, x, a, b: m.maximum(x, m.const(0.0)), None, None),
    "affine": (lambda m, x, a, b: x * m.const(a) + m.const(b), 1.0, 0.0),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "thresholdedrelu": (_thresholded_relu, 1.0, None),
    "scaledtanh": (lambda m, x, a, b: m.tanh(x * m.const(b)) * m.const(a), 1.0, 1.0),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "elu": (_elu, 1.0, None),
    "softsign": (lambda m, x, a, b: x / (m.abs(x) + m.const(1.0)), None, None),
    "softplus": (_softplus, None, None),
}


@dataclass(frozen=True)
class Activation:
    """An activation function of a recurrent operator; its input is clipped to +-`clip`."""

    name: str
    alpha: float
    beta: float
    clip: float | None

    def __call__(self, m: Arithmetic, x: Value) -> Value:
        if self.clip is not None:
            x = m.minimum(m.maximum(x, m.const(-self.clip)), m.const(self.clip))
        return _FUNCTIONS[self.name][0](m, x, self.alpha, self.beta)


def read_activations(
    names: Sequence[str], alphas: Iterable[float], betas: Iterable[float], clip: float | None
) -> list[Activation]:
    """Activations by name; `alphas` and `betas` go to those that take one, in order.

    Raises ValueError for a name that is not known.
    """
    next_alpha, next_beta = iter(alphas), iter(betas)
    result = []
    for name in names:
        if name.lower() not in _FUNCTIONS:
            raise ValueError(f"unknown activation function {name!r}")
        _, alpha, beta = _FUNCTIONS[name.lower()]
        if alpha is not None:
            alpha = next(next_alpha, alpha)
        if beta is not None:
            beta = next(next_beta, beta)
        result.append(Activation(name.lower(), float(alpha or 0.0), float(beta or 0.0), clip))
    return result


def lstm_step(
    m: Arithmetic,
    functions: Sequence[Activation],
    gates: Sequence[Value],
    cell: Value,
    peepholes: Sequence[Value] | None,
    couple_forget: bool,
) -> tuple[Value, Value]:
    """The new hidden and cell state from the gates' inputs in the order i, o, f, c."""
    f, g, h = functions
    input_gate, output_gate, forget_gate, candidate = gates
    if peepholes is not None:
        input_gate = input_gate + peepholes[0] * cell
        forget_gate = forget_gate + peepholes[2] * cell
    input_gate = f(m, input_gate)
    forget_gate = m.const(1.0) - input_gate if couple_forget else f(m, forget_gate)
    new_cell = forget_gate * cell + input_gate * g(m, candidate)
    if peepholes is not None:
        output_gate = output_gate + peepholes[1] * new_cell
    return f(m, output_gate) * h(m, new_cell), new_cell


def gru_update(m: Arithmetic, update: Value, candidate: Value, hidden: Value) -> Value:
    """The new hidden state of a GRU from its update gate and candidate state."""
    return (m.const(1.0) - update) * candidate + update * hidden
