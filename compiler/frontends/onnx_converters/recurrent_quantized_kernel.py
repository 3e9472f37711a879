"""The time loop of an LSTM whose recurrent weights are codes, as one TensorIR function.

In every step the hidden state is quantised by its own range, zero included:

    scale = (max(h, 0) - min(h, 0)) / 255;  zero = round(-min(h, 0) / scale)
    codes = round(clip(h / scale, -zero, 255 - zero))                 (int16, zero subtracted)
    gates[t] = projected[t] + (codes @ recurrent) * (scale * column scales)

The product is exact: factors of 16 bits are multiplied and added up in 32, which x86 and ARM do
at once for neighbouring vectors, and the weights stay as small as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import PrimType
from tvm.tirx import PrimFunc, Stmt

from compiler.frontends.onnx_converters.recurrent_kernel import RecurrentKernel, RecurrentWorkload
from targets.cpu import loops
from targets.cpu.operators.quantization import ROUNDING_ADDEND

_TILES = (64, 32, 16, 8, 4, 2, 1)
_LANES = (16, 8, 4, 2, 1)


class _QuantizedKernel(RecurrentKernel):
    """Parameters as in `RecurrentKernel`, but for recurrent (D, H, 4*H) of `codes_dtype`.

    Two more: column scales (D, 4*H) float32 behind it, and codes (D, B, H) int16 as scratch.
    """

    def __init__(self, workload: RecurrentWorkload, codes_dtype: str) -> None:
        super().__init__(workload)
        w = workload
        shape = (w.directions, w.hidden, self.width)
        self.recurrent = tirx.decl_buffer(shape, codes_dtype, "recurrent")
        self.scales = self._buffer("scales", w.directions, self.width)
        self.codes = tirx.decl_buffer((w.directions, w.batch, w.hidden), "int16", "codes")

    def parameters(self) -> list[Any]:
        inherited = super().parameters()
        position = inherited.index(self.recurrent) + 1
        return [*inherited[:position], self.scales, *inherited[position:], self.codes]

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
        """scratch[start:stop] = initial + dequantised (codes of the vector @ recurrent)"""
        hidden = self.workload.hidden
        lanes = next(size for size in _LANES if hidden % size == 0)
        low = loops.local_buffer("low", (lanes,), "float32")
        high = loops.local_buffer("high", (lanes,), "float32")
        zero, most = (tirx.const(limit, "float32") for limit in (0.0, 255.0))

        def value(k: Any) -> Any:
            return loops.load(vector, d, entry, k + offset)

        def widen(group: Any) -> Stmt:
            return loops.vectorized(
                "j",
                lanes,
                lambda j: loops.sequence(
                    [
                        loops.store(
                            low, (j,), tirx.min(loops.load(low, j), value(group * lanes + j))
                        ),
                        loops.store(
                            high, (j,), tirx.max(loops.load(high, j), value(group * lanes + j))
                        ),
                    ]
                ),
            )

        def cleared(buffer: Any) -> Stmt:
            return loops.vectorized("j", lanes, lambda j: loops.store(buffer, (j,), zero))

        def gathered(j: Any) -> Stmt:
            return loops.sequence(
                [
                    loops.store(low, (0,), tirx.min(loops.load(low, 0), loops.load(low, j))),
                    loops.store(high, (0,), tirx.max(loops.load(high, 0), loops.load(high, j))),
                ]
            )

        scale, zero_point = (tirx.Var(name, PrimType("float32")) for name in ("scale", "zero"))
        width = loops.load(high, 0) - loops.load(low, 0)
        # Nothing but zeros has a range of zero; any scale represents them.
        quantum = tirx.Select(width == zero, tirx.const(1.0, "float32"), width / most)
        statements = [
            cleared(low),
            cleared(high),
            loops.serial("group", hidden // lanes, widen),
            loops.serial("j", lanes - 1, gathered, start=1) if lanes > 1 else None,
            tirx.Bind(scale, quantum),
            tirx.Bind(
                zero_point,
                tirx.Cast(
                    "float32", _rounded(_clipped(zero - loops.load(low, 0) / scale, zero, most))
                ),
            ),
            self._elementwise(
                lambda k: [
                    loops.store(
                        self.codes,
                        (d, entry, k),
                        tirx.Cast(
                            "int16",
                            _rounded(
                                _clipped(
                                    value(k) / scale,
                                    zero - zero_point,
                                    most - zero_point,
                                )
                            ),
                        ),
                    )
                ]
            ),
            self._sums(d, entry, start, stop, initial, scale),
        ]
        return loops.allocate([low, high], loops.sequence(statements))

    def _sums(
        self, d: int, entry: Any, start: int, stop: int, initial: Callable[[Any], Any], scale: Any
    ) -> Stmt:
        tile = next(size for size in _TILES if (stop - start) % size == 0)
        total = loops.local_buffer("total", (tile,), "int32")

        def block(number: Any) -> Stmt:
            base = number * tile + start

            def accumulate(k: Any) -> Stmt:
                code = tirx.Cast("int32", loops.load(self.codes, d, entry, k))

                def add(j: Any) -> Stmt:
                    weight = tirx.Cast("int32", loops.load(self.recurrent, d, k, base + j))
                    return loops.store(total, (j,), loops.load(total, j) + code * weight)

                return loops.vectorized("j", tile, add)

            def finish(j: Any) -> Stmt:
                unit = scale * loops.load(self.scales, d, base + j)
                gate = tirx.Cast("float32", loops.load(total, j)) * unit + initial(base + j)
                return loops.store(self.scratch, (d, entry, base + j), gate)

            nothing = tirx.const(0, "int32")
            return loops.allocate(
                [total],
                loops.sequence(
                    [
                        loops.vectorized("j", tile, lambda j: loops.store(total, (j,), nothing)),
                        loops.serial("k", self.workload.hidden, accumulate),
                        loops.vectorized("j", tile, finish),
                    ]
                ),
            )

        return loops.serial("block", (stop - start) // tile, block)


def _rounded(x: Any) -> Any:
    """The int32 nearest to x, ties to even; right below 2**22."""
    bits = tirx.reinterpret("int32", x + tirx.const(float(ROUNDING_ADDEND), "float32"))
    return bits - tirx.const(int(ROUNDING_ADDEND.view(np.int32)), "int32")


def _clipped(x: Any, low: Any, high: Any) -> Any:
    return tirx.min(tirx.max(x, low), high)


def quantized_lstm_kernel(workload: RecurrentWorkload, codes_dtype: str) -> PrimFunc:
    """The function for an LSTM; `codes_dtype` (int8, int16) of weights less their zero points."""
    return _QuantizedKernel(workload, codes_dtype).function()
