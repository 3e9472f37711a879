"""The register tile: the innermost computation of convolutions and matrix products.

`rows x vectors` accumulators stay in vector registers while the reduction runs:
each step loads `vectors` packed weight vectors, broadcasts one input value for
each row and issues `rows * vectors` fused multiply-adds. This is the outer
product form of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (ACM TOMS 34(3), 2008), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu.anchor import Epilogue
from tinsmith.targets.cpu.arithmetic import Arithmetic, Float32
from tinsmith.targets.cpu.byte_stores import Results, store_results
from tinsmith.targets.cpu.loops import (
    Index,
    allocate,
    index,
    local_buffer,
    ramp,
    sequence,
    splat,
)
from tinsmith.targets.spec import CoreRates, TargetSpec

# Wider tiles are no faster.
_MOST_VECTORS = 8


@dataclass(frozen=True)
class RegisterTile:
    """`rows x vectors` accumulators of `lanes` 32-bit values each.

    An arithmetic of several rows keeps its accumulators in an order of its own until
    `in_rows`; where `rows` is no multiple, it computes the last row twice.
    """

    rows: int
    vectors: int
    lanes: int
    arithmetic: Arithmetic
    accumulators: Var

    @classmethod
    def make(cls, rows: int, vectors: int, lanes: int, arithmetic: Arithmetic) -> RegisterTile:
        """A tile with accumulators of its own."""
        whole = -(-rows // arithmetic.rows) * arithmetic.rows
        shape = (whole * vectors * lanes,)
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
        chosen = set(range(self.rows) if rows is None else rows)
        return sequence(
            tirx.BufferStore(
                self.accumulators,
                self.arithmetic.multiply_add(
                    self._load(r, v), data, self._weights_of(r, weights(v)), self.lanes
                ),
                [self._ramp(r, v)],
            )
            for group in self._groups()
            if chosen & set(group)
            for data in [self._value_of(group, value)]
            for r in group
            for v in range(self.vectors)
        )

    def _groups(self) -> list[range]:
        """The rows that are multiplied together."""
        together = self.arithmetic.rows
        return [range(r, r + together) for r in range(0, self.rows, together)]

    def _value_of(self, group: range, value: Callable[[int], Expr]) -> Expr:
        rows = [value(min(r, self.rows - 1)) for r in group]
        return rows[0] if len(rows) == 1 else _shuffle(rows, range(len(rows) * self._depth))

    def _weights_of(self, row: int, weights: Expr) -> Expr:
        """Those of the lanes that stand in the accumulators of `row`."""
        together = self.arithmetic.rows
        if together == 1:
            return weights
        part = self.lanes * self._depth // together
        first = row % together * part
        return _shuffle([weights], range(first, first + part))

    @property
    def _depth(self) -> int:
        return self.arithmetic.depth

    def in_rows(self) -> Stmt | None:
        """Brings the accumulators into the order of rows, after the reduction."""
        if self.arithmetic.rows == 1:
            return None
        together, part = self.arithmetic.rows, self.lanes // self.arithmetic.rows
        ordered = local_buffer("ordered", (together * self.lanes,), self.arithmetic.accumulator)

        def of_group(group: range, vector: int) -> Iterable[Stmt]:
            mixed = [self._load(r, vector) for r in group]
            for i in range(together):
                lanes = [
                    j * self.lanes + i * part + k for j in range(together) for k in range(part)
                ]
                row = _shuffle(mixed, lanes)
                yield tirx.BufferStore(ordered, row, [ramp(i * self.lanes, self.lanes)])
            for i, r in enumerate(group):
                row = tirx.BufferLoad(ordered, [ramp(i * self.lanes, self.lanes)])
                yield tirx.BufferStore(self.accumulators, row, [self._ramp(r, vector)])

        return allocate(
            [ordered],
            sequence(
                s for g in self._groups() for v in range(self.vectors) for s in of_group(g, v)
            ),
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
            for group in self._groups()
            for r in group
            for v in range(self.vectors)
        )

    def write_back(
        self,
        epilogue: Epilogue,
        position: Callable[[Index, Expr], list[Index]],
        spare: int = 0,
        is_last: Expr | bool = True,
        rows: Iterable[Index] | None = None,
        spec: TargetSpec | None = None,
        contiguous: bool = False,
    ) -> Stmt:
        """The epilogue of every accumulator (of `rows`, if given), stored.

        `position(row, column)` gives the output indices of column `column` (counted from
        the tile's first) of a row. Where `is_last` holds, the last `spare` lanes of the
        last vector lie outside the output and are not stored. With a `spec` bytes are packed
        as `byte_stores` says, if columns are the last index; `contiguous` rows follow one
        another in memory without a gap.
        """
        chosen = list(range(self.rows) if rows is None else rows)

        def one(row: Index, vector: int, lanes: int, run: int) -> Results:
            def value(offset: Expr) -> Expr:
                register = tirx.BufferLoad(
                    self.accumulators, [index(self._slot(row, vector)) + offset]
                )
                return epilogue.value(register, position(row, index(vector * self.lanes) + offset))

            return Results(lanes, position(row, index(vector * self.lanes)), value, run)

        def everything(last_lanes: int) -> Stmt:
            results = [
                one(
                    r,
                    v,
                    last_lanes if v == self.vectors - 1 else self.lanes,
                    0 if contiguous else i,
                )
                for i, r in enumerate(chosen)
                for v in range(self.vectors)
            ]
            return store_results(epilogue, results, spec)

        if spare == 0 or is_last is False:
            return everything(self.lanes)
        if is_last is True:
            return everything(self.lanes - spare)
        return tirx.IfThenElse(is_last, everything(self.lanes - spare), everything(self.lanes))


def _shuffle(vectors: Sequence[Expr], lanes: Iterable[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [index(lane) for lane in lanes])


def choose_tile(
    rows: int,
    vectors: int,
    spec: TargetSpec,
    arithmetic: Arithmetic | None = None,
    registers: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """The tile `(rows, vectors)` with the least estimated time for a `rows x vectors` output.

    One reduction step costs what `step_cycles` says; tiles that overlap or stick out cost as
    much as full ones. Besides its accumulators a tile needs `registers`: so many in all, and so
    many for each vector.
    """
    kind = arithmetic or Float32()
    best: tuple[float, int, int] | None = None
    for v in range(1, min(vectors, _MOST_VECTORS) + 1):
        others = registers[0] + kind.temporaries + registers[1] * kind.rows * v
        most_rows = (spec.vector_registers - others) // v
        whole = -(-rows // kind.rows) * kind.rows
        for r in range(kind.rows, min(whole, most_rows) + 1, kind.rows):
            cycles = tiled_cycles(rows, vectors, (r, v), spec.rates, kind.operations)
            cost = (cycles, -r * v, -v)
            if best is None or cost < (best[0], -best[1] * best[2], -best[2]):
                best = (cost[0], r, v)
    if best is None:
        raise ValueError(f"no register tile for {rows} rows and {vectors} vectors")
    return best[1], best[2]


def tiled_cycles(
    rows: int,
    vectors: int,
    tile: tuple[int, int],
    rates: CoreRates,
    operations: tuple[int, int] = (1, 0),
) -> float:
    """Estimated cycles of one reduction step of a `rows x vectors` output cut into tiles."""
    full, rest = divmod(vectors, tile[1])
    steps = full * step_cycles(*tile, rates, operations)
    steps += step_cycles(tile[0], rest, rates, operations) if rest else 0.0
    return -(-rows // tile[0]) * steps


def step_cycles(
    rows: int, vectors: int, rates: CoreRates, operations: tuple[int, int] = (1, 0)
) -> float:
    """Estimated cycles of one reduction step of a register tile.

    The largest of the multiply-adds, all vector operations (the arithmetic's `operations`;
    float32 has none but the first), the loads and the latency of the chain. On a core that
    issues in order, loads of whole registers do not hide behind multiply-adds: both add up.
    """
    products = rows * vectors
    every = operations[0] * products + operations[1] * vectors
    loads = (rows + vectors) / rates.loads
    computing = max(products / rates.fmas, every / rates.operations, rates.fma_latency)
    return (computing + loads if rates.in_order else max(computing, loads)) + 0.5


def tile_choices(
    rows: int, vectors: int, spec: TargetSpec, arithmetic: Arithmetic
) -> dict[str, tuple[int, ...]]:
    """Tile extents that a search may try for a `rows x vectors` output.

    Of the heights that need equally many tiles, the least: the others compute more twice.
    """
    step = arithmetic.rows
    heights = {-(-r // step) * step for r in least_sizes(rows, spec.vector_registers - 1)}
    return {
        "rows": tuple(sorted(heights)),
        "vectors": tuple(range(1, min(vectors, _MOST_VECTORS) + 1)),
    }


def least_sizes(extent: int, most: int) -> tuple[int, ...]:
    """Sizes of pieces up to `most`: of those that cut `extent` into equally many, the least."""
    sizes = range(1, min(extent, most) + 1)
    return tuple(s for s in sizes if s == 1 or -(-extent // s) < -(-extent // (s - 1)))


def fills_registers(
    decisions: Mapping[str, int],
    spec: TargetSpec,
    arithmetic: Arithmetic,
    registers: tuple[int, int] = (1, 1),
) -> bool:
    """Whether the accumulators of a tile fit into registers and hide their own latency.

    `registers` are those that `choose_tile` takes. With few accumulators each multiply-add
    waits for the one before it.
    """
    rows, vectors = decisions["rows"], decisions["vectors"]
    others = registers[0] + arithmetic.temporaries + registers[1] * arithmetic.rows * vectors
    return rows * vectors + others <= spec.vector_registers and rows * vectors >= 4
