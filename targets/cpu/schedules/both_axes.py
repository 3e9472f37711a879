"""Small linear transforms `T x T^T` of squares of vectors, unrolled, in registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.winograd_matrices import Matrix


def transform_both_axes(
    factors: tuple[Matrix, Matrix],
    lanes: int,
    source: Callable[[int, int], Expr],
    sink: Callable[[int, int, Expr], Stmt],
) -> Stmt:
    """`T x T^T` for the square `x` of vectors that `source` reads; `T` is the factors' product."""
    outer, inner = factors
    (parts, extent), results = inner.shape, outer.shape[0]
    line = _Registers("line", (extent,), lanes)
    shared = _Registers("shared", (parts,), lanes)
    half = _Registers("half", (results, extent), lanes)
    statements: list[Stmt] = []
    for j in range(extent):
        statements += [line.put(source(i, j), i) for i in range(extent)]
        statements += [shared.put(_combined(inner[i], line), i) for i in range(parts)]
        statements += [half.put(_combined(outer[i], shared), i, j) for i in range(results)]
    for i in range(results):
        statements += [line.put(half.get(i, j), j) for j in range(extent)]
        statements += [shared.put(_combined(inner[j], line), j) for j in range(parts)]
        statements += [sink(i, j, _combined(outer[j], shared)) for j in range(results)]
    return loops.allocate([line.buffer, shared.buffer, half.buffer], loops.sequence(statements))


class _Registers:
    """A small array of vectors that LLVM keeps in registers."""

    def __init__(self, name: str, shape: Sequence[int], lanes: int):
        self.shape, self.lanes = tuple(shape), lanes
        self.buffer: Var = loops.local_buffer(name, (math.prod(shape) * lanes,), "float32")

    def _ramp(self, *position: int) -> Expr:
        return loops.ramp(int(np.ravel_multi_index(position, self.shape)) * self.lanes, self.lanes)

    def get(self, *position: int) -> Expr:
        return tirx.BufferLoad(self.buffer, [self._ramp(*position)])

    def put(self, value: Expr, *position: int) -> Stmt:
        return tirx.BufferStore(self.buffer, value, [self._ramp(*position)])


def _combined(row: Matrix, values: _Registers) -> Expr:
    """The sum of the values, each times its coefficient in `row`; zeros are left out.

    Coefficients of one come first, so that the others become fused multiply-adds.
    """

    def times(factor: float, term: Expr) -> Expr:
        wide = loops.splat(tirx.const(factor, "float32"), values.lanes)
        return term if factor == 1.0 else term * wide

    first, *others = sorted(map(int, np.flatnonzero(row)), key=lambda i: row[i] != 1.0)
    total = times(float(row[first]), values.get(first))
    for i in others:
        factor, term = float(row[i]), values.get(i)
        total = total - term if factor == -1.0 else total + times(factor, term)
    return total
