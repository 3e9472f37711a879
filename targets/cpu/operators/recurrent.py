"""The time loop of LSTM, GRU and RNN as one TensorIR function.

The input projection of all time steps has been computed before, as one matrix
product; what is left depends on the previous step:

    gates[t] = projected[t] + hidden[t - 1] @ recurrent        (a matrix-vector product)
    hidden[t], cell[t] = step(gates[t], cell[t - 1])           (elementwise)

The product runs over register tiles of gates with the hidden state innermost but
one, so that each weight is read once per step, along rows. Directions and batch
entries are independent and run in parallel. With one sequence in one direction,
the tiles of a large product do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import PrimType
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.operators.recurrent_cells import (
    Activation,
    ScalarArithmetic,
    gru_update,
    lstm_step,
)
from tinsmith.targets.template import TEMPLATE_ATTRIBUTE, WORKLOAD_ATTRIBUTE

# A tile of gates is kept in registers: eight of 256 bits or four of 512.
_TILES = (64, 32, 16, 8, 4, 2, 1)
_LANES = (16, 8, 4, 2, 1)
# A single sequence's product of so many weights is shared out; below, threads would wait for
# each other.
_SHARED_OUT = 250_000
_OPAQUE = 8  # Relax's kOpaque: never fused with its neighbours


@dataclass(frozen=True)
class RecurrentWorkload:
    """Everything that decides what the kernel looks like.

    `kind` is `lstm`, `gru` or `rnn`. `functions` holds, per direction, the activations in the
    operator's order. `reverse` says of each direction whether it runs backwards.
    """

    kind: str
    steps: int
    batch: int
    hidden: int
    dtype: str
    functions: tuple[tuple[Activation, ...], ...]
    reverse: tuple[bool, ...]
    linear_before_reset: bool = False
    couple_forget: bool = False
    has_peepholes: bool = False
    has_lengths: bool = False

    @property
    def gate_count(self) -> int:
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.kind]

    @property
    def directions(self) -> int:
        return len(self.reverse)


class RecurrentKernel:
    """Builds the function for one workload.

    Shapes, with T steps, D directions, B batch, H hidden, G gates:
    projected (T, B, D*G*H), recurrent (D, H, G*H), initial states (D, B, H),
    peepholes (D, 3*H) in the order i, o, f, recurrent_bias (D, H) of a GRU's candidate,
    lengths (B) int32, of which those beyond T count as T
    -> sequence (T, D, B, H), final states (D, B, H), scratch (D, B, G*H).
    """

    def __init__(self, workload: RecurrentWorkload) -> None:
        w = self.workload = workload
        self.math = ScalarArithmetic(w.dtype)
        self.width = w.gate_count * w.hidden
        state = (w.directions, w.batch, w.hidden)
        self.projected = self._buffer("projected", w.steps, w.batch, w.directions * self.width)
        self.recurrent = self._buffer("recurrent", w.directions, w.hidden, self.width)
        self.initial_hidden = self._buffer("initial_hidden", *state)
        self.initial_cell = self._buffer("initial_cell", *state)
        self.peepholes = self._buffer("peepholes", w.directions, 3 * w.hidden)
        self.recurrent_bias = self._buffer("recurrent_bias", w.directions, w.hidden)
        self.lengths = tirx.decl_buffer((w.batch,), "int32", "lengths")
        self.sequence = self._buffer("sequence", w.steps, *state)
        self.final_hidden = self._buffer("final_hidden", *state)
        self.final_cell = self._buffer("final_cell", *state)
        self.scratch = self._buffer("scratch", w.directions, w.batch, self.width)

    def _buffer(self, name: str, *shape: int) -> Any:
        return tirx.decl_buffer(shape, self.workload.dtype, name)

    def parameters(self) -> list[Any]:
        """The buffers of this workload in order: inputs, then results and scratch."""
        w = self.workload
        lstm, linear = w.kind == "lstm", w.kind == "gru" and w.linear_before_reset
        present = [
            (self.projected, True),
            (self.recurrent, True),
            (self.initial_hidden, True),
            (self.initial_cell, lstm),
            (self.peepholes, w.has_peepholes),
            (self.recurrent_bias, linear),
            (self.lengths, w.has_lengths),
            (self.sequence, True),
            (self.final_hidden, True),
            (self.final_cell, lstm),
            (self.scratch, True),
        ]
        return [buffer for buffer, used in present if used]

    def function(self) -> PrimFunc:
        """The finished loops, marked for the template that takes them as they are."""
        w = self.workload
        body = self._body()
        function = PrimFunc(self.parameters(), body)
        return function.with_attrs(
            {
                "tirx.noalias": True,
                "op_pattern": _OPAQUE,
                TEMPLATE_ATTRIBUTE: "recurrent",
                WORKLOAD_ATTRIBUTE: (
                    f"{w.kind} steps={w.steps} batch={w.batch} hidden={w.hidden} "
                    f"directions={w.directions}"
                ),
            }
        )

    def _body(self) -> Stmt:
        w = self.workload
        batches = loops.serial if w.directions * w.batch == 1 else loops.parallel
        return batches(
            "lane",
            w.directions * w.batch,
            lambda lane: self._by_direction(
                lane // w.batch, lambda direction: self._run(direction, lane % w.batch)
            ),
        )

    def _by_direction(self, direction: Any, make: Callable[[int], Stmt]) -> Stmt:
        """Each direction is spelled out: its activations and its order in time differ."""
        if self.workload.directions == 1:
            return make(0)
        return tirx.IfThenElse(direction == loops.index(0), make(0), make(1))

    def _run(self, direction: int, entry: Any) -> Stmt:
        """All steps of one direction for one batch entry."""

        def turn(number: Any) -> Stmt:
            def beyond() -> Stmt:
                return self._elementwise(
                    lambda j: [self._nothing(number, direction, entry, j)],
                )

            return self._within_length(
                direction,
                entry,
                number,
                lambda position: self._step(direction, entry, position),
                beyond,
            )

        steps = loops.serial("turn", self.workload.steps, turn)
        return loops.sequence([self._begin(direction, entry), steps])

    def _begin(self, direction: int, entry: Any) -> Stmt:
        """The states as they are given."""
        first = [self._copy(self.final_hidden, self.initial_hidden, direction, entry)]
        if self.workload.kind == "lstm":
            first.append(self._copy(self.final_cell, self.initial_cell, direction, entry))
        return loops.sequence(first)

    def _within_length(
        self,
        direction: int,
        entry: Any,
        turn: Any,
        inside: Callable[[Any], Stmt],
        beyond: Callable[[], Stmt],
    ) -> Stmt:
        """`inside` at the position in time of this turn, `beyond` behind the sequence's end."""
        w = self.workload
        last: Any = loops.index(w.steps)
        if w.has_lengths:
            # Data may say anything, and a turn backwards begins at the last step.
            last = tirx.min(loops.load(self.lengths, entry), last)
        body = inside(last - 1 - turn if w.reverse[direction] else turn)
        return tirx.IfThenElse(turn < last, body, beyond()) if w.has_lengths else body

    def _nothing(self, turn: Any, direction: int, entry: Any, j: Any) -> Stmt:
        return loops.store(self.sequence, (turn, direction, entry, j), self.math.const(0.0))

    def _step(self, direction: int, entry: Any, position: Any) -> Stmt:
        make = {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self.workload.kind]
        return make(direction, entry, position)

    def _lstm(self, d: int, entry: Any, position: Any) -> Stmt:
        h = self.workload.hidden

        def update(j: Any) -> list[Stmt]:
            gates = [loops.load(self.scratch, d, entry, j + k * h) for k in range(4)]
            return self._new_state(d, entry, position, j, gates)

        product = self._product(
            d, entry, self.final_hidden, 0, self.width, self._projection(d, entry, position)
        )
        return loops.sequence([product, self._elementwise(update)])

    def _new_state(
        self, d: int, entry: Any, position: Any, j: Any, gates: Sequence[Any]
    ) -> list[Stmt]:
        """The states of unit `j` of an LSTM from its gates, stored."""
        w, h = self.workload, self.workload.hidden
        peepholes = None
        if w.has_peepholes:
            peepholes = [loops.load(self.peepholes, d, j + k * h) for k in range(3)]
        hidden, cell = lstm_step(
            self.math,
            w.functions[d],
            gates,
            loops.load(self.final_cell, d, entry, j),
            peepholes,
            w.couple_forget,
        )
        # The cell is stored first and read no more: `hidden` needs the old one.
        new_cell, new_hidden = (tirx.Var(name, PrimType(w.dtype)) for name in ("cell", "hidden"))
        return [
            tirx.Bind(new_cell, cell),
            tirx.Bind(new_hidden, hidden),
            loops.store(self.final_cell, (d, entry, j), new_cell),
            *self._publish(d, entry, position, j, new_hidden),
        ]

    def _rnn(self, d: int, entry: Any, position: Any) -> Stmt:
        function = self.workload.functions[d][0]

        def update(j: Any) -> list[Stmt]:
            hidden = function(self.math, loops.load(self.scratch, d, entry, j))
            return self._publish(d, entry, position, j, hidden)

        product = self._product(
            d, entry, self.final_hidden, 0, self.width, self._projection(d, entry, position)
        )
        return loops.sequence([product, self._elementwise(update)])

    def _gru(self, d: int, entry: Any, position: Any) -> Stmt:
        w = self.workload
        h = w.hidden
        f, g = w.functions[d]
        projection = self._projection(d, entry, position)

        def gate(j: Any, number: int) -> Any:
            return loops.load(self.scratch, d, entry, j + number * h)

        def hidden(j: Any) -> Any:
            return loops.load(self.final_hidden, d, entry, j)

        def finish(j: Any) -> list[Stmt]:
            if w.linear_before_reset:
                reset = f(self.math, gate(j, 1))
                candidate = g(self.math, projection(j + 2 * h) + reset * gate(j, 2))
            else:
                candidate = g(self.math, gate(j, 2))
            update = f(self.math, gate(j, 0))
            value = gru_update(self.math, update, candidate, hidden(j))
            return self._publish(d, entry, position, j, value)

        if w.linear_before_reset:
            both = self._product(d, entry, self.final_hidden, 0, 2 * h, projection)
            linear = self._product(
                d,
                entry,
                self.final_hidden,
                2 * h,
                3 * h,
                lambda column: loops.load(self.recurrent_bias, d, column - 2 * h),
            )
            return loops.sequence([both, linear, self._elementwise(finish)])

        def reset(j: Any) -> list[Stmt]:
            # The reset state takes the place of the reset gate, which is needed no more.
            value = f(self.math, gate(j, 1)) * hidden(j)
            return [loops.store(self.scratch, (d, entry, j + h), value)]

        return loops.sequence(
            [
                self._product(d, entry, self.final_hidden, 0, 2 * h, projection),
                self._elementwise(reset),
                self._product(d, entry, self.scratch, 2 * h, 3 * h, projection, offset=h),
                self._elementwise(finish),
            ]
        )

    def _projection(self, d: int, entry: Any, position: Any) -> Callable[[Any], Any]:
        return lambda column: loops.load(self.projected, position, entry, column + d * self.width)

    def _publish(self, d: int, entry: Any, position: Any, j: Any, value: Any) -> list[Stmt]:
        new = tirx.Var("new_hidden", PrimType(self.workload.dtype))
        return [
            tirx.Bind(new, value),
            loops.store(self.final_hidden, (d, entry, j), new),
            loops.store(self.sequence, (position, d, entry, j), new),
        ]

    def _product(
        self,
        d: int,
        entry: Any,
        vector: Any,
        start: int,
        stop: int,
        initial: Callable[[Any], Any],
        offset: int = 0,
    ) -> Stmt:
        """scratch[start:stop] = initial + vector[offset:offset + H] @ recurrent[:, start:stop]"""
        w = self.workload
        tile = next(size for size in _TILES if (stop - start) % size == 0)
        total = loops.local_buffer("total", (tile,), w.dtype)
        alone = w.directions * w.batch == 1 and not w.has_lengths
        shared_out = alone and w.hidden * (stop - start) >= _SHARED_OUT
        blocks = loops.parallel if shared_out else loops.serial

        def block(number: Any) -> Stmt:
            base = number * tile + start

            def accumulate(k: Any) -> Stmt:
                value = loops.load(vector, d, entry, k + offset)
                return loops.vectorized(
                    "j",
                    tile,
                    lambda j: loops.store(
                        total,
                        (j,),
                        loops.load(total, j) + value * loops.load(self.recurrent, d, k, base + j),
                    ),
                )

            return loops.allocate(
                [total],
                loops.sequence(
                    [
                        loops.vectorized(
                            "j", tile, lambda j: loops.store(total, (j,), initial(base + j))
                        ),
                        loops.serial("k", self.workload.hidden, accumulate),
                        loops.vectorized(
                            "j",
                            tile,
                            lambda j: loops.store(
                                self.scratch, (d, entry, base + j), loops.load(total, j)
                            ),
                        ),
                    ]
                ),
            )

        return blocks("block", (stop - start) // tile, block)

    def _elementwise(self, body: Callable[[Any], list[Stmt]]) -> Stmt:
        hidden = self.workload.hidden
        lanes = next(size for size in _LANES if hidden % size == 0)
        return loops.serial(
            "group",
            hidden // lanes,
            lambda group: loops.vectorized(
                "j", lanes, lambda j: loops.sequence(body(group * lanes + j))
            ),
        )

    def _copy(self, target: Any, source: Any, d: int, entry: Any) -> Stmt:
        return self._elementwise(
            lambda j: [loops.store(target, (d, entry, j), loops.load(source, d, entry, j))]
        )


def recurrent_kernel(workload: RecurrentWorkload) -> PrimFunc:
    """The function for `workload`; `RecurrentKernel` lists its parameters."""
    return RecurrentKernel(workload).function()
