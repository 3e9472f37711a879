"""The register tile: the innermost computation of convolutions and matrix products.

`rows x vectors` accumulators stay in vector registers while the reduction runs:
each step loads `vectors` packed weight vectors, broadcasts one input value for
each row and issues `rows * vectors` fused multiply-adds. This is the outer
product form of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (ACM TOMS 34(3), 2008), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from targets.cpu.anchor import Epilogue
from targets.cpu.arithmetic import Arithmetic
from targets.cpu.loops import (
    Index,
    index,
    local_buffer,
    ramp,
    sequence,
    splat,
    store,
    vectorized,
)
from targets.spec import TargetSpec


@dataclass(frozen=True)
class RegisterTile:
    """`rows x vectors` accumulators of `lanes` 32-bit values each."""

    rows: int
    vectors: int
    lanes: int
    arithmetic: Arithmetic
    accumulators: Var

    @classmethod
    def make(cls, rows: int, vectors: int, lanes: int, arithmetic: Arithmetic) -> RegisterTile:
        """A tile with accumulators of its own."""
        shape = (rows * vectors * lanes,)
        registers = local_buffer("accumulator", shape, arithmetic.accumulator)
        return cls(rows, vectors, lanes, arithmetic, registers)

    def _slot(self, row: Index, vector: int) -> Index:
        return (row * self.vectors + vector) * self.lanes

    def _ramp(self, row: int, vector: int) -> Expr:
        return ramp(self._slot(row, vector), self.lanes)

    def clear(self) -> Stmt:
        """All accumulators set to zero."""
        zero = splat(tirx.const(0, self.arithmetic.accumulator), self.lanes)
        return self._updated(lambda r, v: zero)

    def multiply_add(
        self,
        value: Callable[[int], Expr],
        weights: Callable[[int], Expr],
        rows: Iterable[int] | None = None,
    ) -> Stmt:
        """One reduction step.

        `value(row)` are the data of one step (the arithmetic's `depth` elements),
        `weights(vector)` its weights; `rows` restricts the step to some rows (the others
        meet padding).
        """
        chosen = range(self.rows) if rows is None else rows
        return sequence(
            tirx.BufferStore(
                self.accumulators,
                self.arithmetic.multiply_add(
                    self._load(r, v),
                    value(r),
                    weights(v),
                    self.lanes,
                ),
                [self._ramp(r, v)],
            )
            for r in chosen
            for v in range(self.vectors)
        )

    def scale(self, factor: int) -> Stmt:
        """All accumulators times `factor`."""
        wide = splat(tirx.const(factor, self.arithmetic.accumulator), self.lanes)
        return self._updated(lambda r, v: self._load(r, v) * wide)

    def add_row(self, other: RegisterTile) -> Stmt:
        """The one row of `other`, a tile as wide, added to each row."""
        return self._updated(lambda r, v: self._load(r, v) + other._load(0, v))

    def _load(self, row: int, vector: int) -> Expr:
        return tirx.BufferLoad(self.accumulators, [self._ramp(row, vector)])

    def _updated(self, value: Callable[[int, int], Expr]) -> Stmt:
        return sequence(
            tirx.BufferStore(self.accumulators, value(r, v), [self._ramp(r, v)])
            for r in range(self.rows)
            for v in range(self.vectors)
        )

    def write_back(
        self,
        epilogue: Epilogue,
        position: Callable[[Index, Expr], list[Index]],
        spare: int = 0,
        is_last: Expr | bool = True,
        rows: Iterable[Index] | None = None,
    ) -> Stmt:
        """The epilogue of every accumulator (of `rows`, if given), stored.

        `position(row, column)` gives the output indices of column `column` (counted from
        the tile's first) of a row. Where `is_last` holds, the last `spare` lanes of the
        last vector lie outside the output and are not stored.
        """
        chosen = list(range(self.rows) if rows is None else rows)

        def one(row: Index, vector: int, lanes: int) -> Stmt:
            def lane(offset: Expr) -> Stmt:
                indices = position(row, index(vector * self.lanes) + offset)
                register = tirx.BufferLoad(
                    self.accumulators, [index(self._slot(row, vector)) + offset]
                )
                return store(epilogue.output, indices, epilogue.value(register, indices))

            return vectorized("lane", lanes, lane)

        def everything(last_lanes: int) -> Stmt:
            return sequence(
                one(r, v, last_lanes if v == self.vectors - 1 else self.lanes)
                for r in chosen
                for v in range(self.vectors)
            )

        if spare == 0 or is_last is False:
            return everything(self.lanes)
        if is_last is True:
            return everything(self.lanes - spare)
        return tirx.IfThenElse(is_last, everything(self.lanes - spare), everything(self.lanes))


def choose_tile(
    rows: int,
    vectors: int,
    spec: TargetSpec,
    most_vectors: int = 8,
    registers: tuple[int, int] = (1, 1),
    operations: tuple[int, int] = (1, 0),
) -> tuple[int, int]:
    """The tile `(rows, vectors)` with the least estimated time for a `rows x vectors` output.

    One reduction step costs the largest of the multiply-adds (two a cycle), all vector
    operations (three a cycle: `operations` of each multiply-add and of each vector of weights),
    the loads (two a cycle) and the latency of the chain (four cycles); tiles that overlap or
    stick out cost as much as full ones. Besides its accumulators a tile needs `registers`: so
    many in all, and so many for each vector.
    """
    best: tuple[float, int, int] | None = None
    for v in range(1, min(vectors, most_vectors) + 1):
        most_rows = (spec.vector_registers - registers[0] - registers[1] * v) // v
        for r in range(1, min(rows, most_rows) + 1):
            row_tiles = -(-rows // r)
            full, rest = divmod(vectors, v)
            steps = full * _step_cycles(r, v, operations)
            steps += _step_cycles(r, rest, operations) if rest else 0.0
            cost = (row_tiles * steps, -r * v, -v)
            if best is None or cost < (best[0], -best[1] * best[2], -best[2]):
                best = (cost[0], r, v)
    if best is None:
        raise ValueError(f"no register tile for {rows} rows and {vectors} vectors")
    return best[1], best[2]


def _step_cycles(rows: int, vectors: int, operations: tuple[int, int]) -> float:
    products = rows * vectors
    every = operations[0] * products + operations[1] * vectors
    return max(products / 2, every / 3, (rows + vectors) / 2, 4.0) + 0.5


def tile_choices(spec: TargetSpec) -> dict[str, tuple[int, ...]]:
    """Tile extents that a search may try."""
    rows = tuple(r for r in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if r < spec.vector_registers)
    return {"rows": rows, "vectors": (1, 2, 3, 4, 5, 6)}
