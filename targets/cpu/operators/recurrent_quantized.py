"""The time loop of an LSTM whose recurrent weights are codes, as one TensorIR function.

In every step the hidden state is quantised by its own range, zero included:

    scale = (max(h, 0) - min(h, 0)) / 255;  zero = round(-min(h, 0) / scale)
    codes = round(clip(h / scale, -zero, 255 - zero)) + zero - 128                     (int8)
    gates[t] = projected[t] + (codes - (zero - 128)) @ recurrent * (scale * column scales)

The product is exact. It goes by blocks of hidden units: the four gates of a block are summed up
in registers, from weights that lie in the order in which they are read, and its units are updated
at once. Large states share out the blocks of every step among the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.ir import PrimType
from tvm.tirx import Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.byte_dots import multiply_add
from tinsmith.targets.cpu.operators.quantization import ROUNDING_ADDEND
from tinsmith.targets.cpu.operators.recurrent import (
    RecurrentKernel,
    RecurrentWorkload,
)

# Units of a block: the sums of their gates fit into eight registers of 256 bits.
_UNITS = (16, 8, 4, 2, 1)
# Codes that are multiplied in one step, and the sums that a step adds to.
_DEPTH, _SUMS = 4, 16
_GATES = 4
# Bytes multiply exactly up to this magnitude; larger weights are sums of several.
_LARGEST = 127
# With so many products in a step, it is shared out; below, threads would wait for each other.
_SHARED_OUT = 500_000


def pack_recurrent(codes: npt.NDArray[np.int16]) -> npt.NDArray[np.int8]:
    """Codes (D, H, 4*H) less their zero points, as `QuantizedLstm` reads them.

    (D, blocks of units, parts * ceil(H / 4), 4 gates * units * 4) int8, the last axis by gate,
    unit and hidden state. The parts, one where all codes are of -127 to 127, add up to the codes.
    """
    directions, hidden, _ = codes.shape
    units, steps = _units(hidden), -(-hidden // _DEPTH)
    filled = np.pad(codes, [(0, 0), (0, steps * _DEPTH - hidden), (0, 0)])
    parts: list[npt.NDArray[np.int8]] = []
    while not parts or filled.any():
        parts.append(np.clip(filled, -_LARGEST, _LARGEST).astype(np.int8))
        filled = filled - parts[-1]
    rows = np.stack(parts, 1).reshape(
        directions, len(parts) * steps, _DEPTH, _GATES, hidden // units, units
    )
    blocks = rows.transpose(0, 4, 1, 3, 5, 2)
    return np.ascontiguousarray(blocks).reshape(directions, hidden // units, rows.shape[1], -1)


def _units(hidden: int) -> int:
    return next(size for size in _UNITS if hidden % size == 0)


class QuantizedLstm(RecurrentKernel):
    """Parameters as in `RecurrentKernel`, but for `recurrent` of `pack_recurrent`.

    Two more inputs behind it: column scales (D, 4*H) float32 and column sums (D, 4*H) int32 of
    the codes. In the place of its scratch: codes (D, B, 4 * ceil(H / 4)) int8, and for each
    sequence the scale, and what has been subtracted from its codes too much, (D, B, 2) float32.
    """

    def __init__(self, workload: RecurrentWorkload, packed: tuple[int, ...]) -> None:
        super().__init__(workload)
        w = workload
        self.units, self.steps = _units(w.hidden), -(-w.hidden // _DEPTH)
        self.blocks = w.hidden // self.units
        self.parts = packed[2] // self.steps
        self.recurrent = tirx.decl_buffer(packed, "int8", "recurrent")
        self.scales = self._buffer("scales", w.directions, self.width)
        self.sums = tirx.decl_buffer((w.directions, self.width), "int32", "sums")
        self.codes = tirx.decl_buffer(self.scratch_shapes[0], "int8", "codes")
        self.quanta = self._buffer("quanta", *self.scratch_shapes[1])

    @property
    def scratch_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the codes and of the scales and shifts."""
        lanes = (self.workload.directions, self.workload.batch)
        return (*lanes, self.steps * _DEPTH), (*lanes, 2)

    def parameters(self) -> list[Any]:
        inherited = super().parameters()[:-1]
        position = inherited.index(self.recurrent) + 1
        inputs = [self.scales, self.sums]
        return [
            *inherited[:position],
            *inputs,
            *inherited[position:],
            self.codes,
            self.quanta,
        ]

    def _body(self) -> Stmt:
        w = self.workload
        if self.width * w.hidden < _SHARED_OUT:
            return super()._body()

        def everywhere(make: Callable[[int, Any], Stmt]) -> Stmt:
            return loops.sequence(
                loops.serial("entry", w.batch, lambda entry, d=d: make(d, entry))
                for d in range(w.directions)
            )

        def task(turn: Any, number: Any) -> Stmt:
            block = number % self.blocks

            def of_direction(d: int) -> Stmt:
                return loops.serial(
                    "entry", w.batch, lambda entry: self._one_block(d, entry, turn, block)
                )

            return self._by_direction(number // self.blocks, of_direction)

        def step(turn: Any) -> Stmt:
            tasks = loops.parallel(
                "task", w.directions * self.blocks, lambda number: task(turn, number)
            )
            return loops.sequence([everywhere(self._quantise), tasks])

        return loops.sequence([everywhere(self._begin), loops.serial("turn", w.steps, step)])

    def _one_block(self, d: int, entry: Any, turn: Any, block: Any) -> Stmt:
        """One turn of one block, unless the sequence has come to its end."""

        def beyond() -> Stmt:
            return loops.vectorized(
                "j", self.units, lambda j: self._nothing(turn, d, entry, block * self.units + j)
            )

        return self._within_length(
            d, entry, turn, lambda position: self._update(d, entry, position, block), beyond
        )

    def _lstm(self, d: int, entry: Any, position: Any) -> Stmt:
        blocks = loops.serial(
            "block", self.blocks, lambda block: self._update(d, entry, position, block)
        )
        return loops.sequence([self._quantise(d, entry), blocks])

    def _quantise(self, d: int, entry: Any) -> Stmt:
        """The codes of the hidden state, with their scale and shift."""
        hidden = self.workload.hidden
        lanes = _units(hidden)
        low = loops.local_buffer("low", (lanes,), "float32")
        high = loops.local_buffer("high", (lanes,), "float32")
        zero, most, middle = (tirx.const(limit, "float32") for limit in (0.0, 255.0, 128.0))

        def value(k: Any) -> Any:
            return loops.load(self.final_hidden, d, entry, k)

        def widen(j: Any, x: Any, to: Any = None) -> Stmt:
            at = j if to is None else to
            return loops.sequence(
                [
                    loops.store(low, (at,), tirx.min(loops.load(low, at), x(low))),
                    loops.store(high, (at,), tirx.max(loops.load(high, at), x(high))),
                ]
            )

        def cleared(buffer: Any) -> Stmt:
            return loops.vectorized("j", lanes, lambda j: loops.store(buffer, (j,), zero))

        scale, zero_point = (tirx.Var(name, PrimType("float32")) for name in ("scale", "zero"))
        shift = tirx.Var("shift", PrimType("int32"))
        width = loops.load(high, 0) - loops.load(low, 0)
        # Nothing but zeros has a range of zero; any scale represents them.
        quantum = tirx.Select(width == zero, tirx.const(1.0, "float32"), width / most)

        def quantise(k: Any) -> list[Stmt]:
            bounded = _clipped(value(k) / scale, zero - zero_point, most - zero_point)
            code = tirx.Cast("int8", _rounded(bounded) - shift)
            return [loops.store(self.codes, (d, entry, k), code)]

        statements = [
            cleared(low),
            cleared(high),
            loops.serial(
                "group",
                hidden // lanes,
                lambda group: loops.vectorized(
                    "j", lanes, lambda j: widen(j, lambda _: value(group * lanes + j))
                ),
            ),
            loops.serial(
                "j",
                lanes - 1,
                lambda j: widen(j, lambda buffer: loops.load(buffer, j), 0),
                start=1,
            )
            if lanes > 1
            else None,
            tirx.Bind(scale, quantum),
            tirx.Bind(
                zero_point,
                tirx.Cast(
                    "float32", _rounded(_clipped(zero - loops.load(low, 0) / scale, zero, most))
                ),
            ),
            tirx.Bind(shift, tirx.Cast("int32", middle - zero_point)),
            loops.store(self.quanta, (d, entry, 0), scale),
            loops.store(self.quanta, (d, entry, 1), middle - zero_point),
            self._elementwise(quantise),
        ]
        return loops.allocate([low, high], loops.sequence(statements))

    def _update(self, d: int, entry: Any, position: Any, block: Any) -> Stmt:
        """The sums of all gates of a block of units, and the new states of these units."""
        units, hidden = self.units, self.workload.hidden
        count = _GATES * units
        lanes = min(_SUMS, count)
        total = loops.local_buffer("total", (count,), "int32")
        scale = tirx.Var("scale", PrimType("float32"))
        shift = tirx.Var("shift", PrimType("int32"))
        projection = self._projection(d, entry, position)

        def accumulate(part: Any, step: Any) -> Stmt:
            codes = loops.load(self.codes, d, entry, loops.ramp(step * _DEPTH, _DEPTH))
            row = part * self.steps + step

            def add(start: int) -> Stmt:
                place = loops.ramp(start, lanes)
                bytes_read = loops.ramp(start * _DEPTH, lanes * _DEPTH)
                weights = loops.load(self.recurrent, d, block, row, bytes_read)
                value = multiply_add(loops.load(total, place), codes, weights)
                return loops.store(total, (place,), value)

            return loops.sequence(add(start) for start in range(0, count, lanes))

        def gate(number: int, j: Any) -> Any:
            column = block * units + j + number * hidden
            product = loops.load(total, number * units + j)
            product = product + shift * loops.load(self.sums, d, column)
            unit = scale * loops.load(self.scales, d, column)
            return tirx.Cast("float32", product) * unit + projection(column)

        def finish(j: Any) -> Stmt:
            unit = block * units + j
            return loops.sequence(
                self._new_state(d, entry, position, unit, [gate(k, j) for k in range(_GATES)])
            )

        nothing = tirx.const(0, "int32")
        statements = [
            loops.vectorized("j", count, lambda j: loops.store(total, (j,), nothing)),
            loops.serial(
                "part",
                self.parts,
                lambda part: loops.serial("step", self.steps, lambda step: accumulate(part, step)),
            ),
            tirx.Bind(scale, loops.load(self.quanta, d, entry, 0)),
            tirx.Bind(shift, tirx.Cast("int32", loops.load(self.quanta, d, entry, 1))),
            loops.vectorized("j", units, finish),
        ]
        return loops.allocate([total], loops.sequence(statements))


def _rounded(x: Any) -> Any:
    """The int32 nearest to x, ties to even; right below 2**22."""
    bits = tirx.reinterpret("int32", x + tirx.const(float(ROUNDING_ADDEND), "float32"))
    return bits - tirx.const(int(ROUNDING_ADDEND.view(np.int32)), "int32")


def _clipped(x: Any, low: Any, high: Any) -> Any:
    return tirx.min(tirx.max(x, low), high)
