"""Blocks of AMX tiles: the loops that convolution and matrix product share.

A product has `positions` (output pixels, or rows of the left operand) and
columns, in vectors of 16. A block of `row_tiles x column_tiles` tiles stays in
tile registers while the reduction runs; then it is spilled to the stack, and
the epilogue takes it from there. The rows of a tile of data must lie at equal
distances in memory, and all of them must exist: a tile load has no mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Epilogue
from tinsmith.targets.cpu.arithmetic import Arithmetic
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.schedules.register_tile import RegisterTile
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match
from tinsmith.targets.x86 import tile_instructions as amx

# Accumulators share the registers with data and weights.
_MOST_ACCUMULATORS = 4
# Enough tasks to share out, few enough that configuring the tiles costs nothing.
_TASKS_PER_CORE = 8
# A product of fewer rows waits for its weights, whatever multiplies.
_FEWEST_POSITIONS = 8
# Fewer groups of four bytes in a tile leave its multipliers idle.
_FEWEST_GROUPS = 4


@dataclass(frozen=True)
class TileProduct:
    """The extents of a product.

    It has `images * positions` rows, and `groups` times `blocks` vectors of 16 columns, of
    which the last `spare` columns of each group are missing. The reduction runs over `taps`
    (kernel rows and columns) with a run of `run` groups of four bytes each.
    """

    images: int
    positions: int
    groups: int
    blocks: int
    spare: int
    taps: tuple[int, int]
    run: int

    @property
    def pays(self) -> bool:
        """Whether tiles are faster than vector registers."""
        chunk = self.run // amx.reduction_chunks(self.run)
        return self.images * self.positions >= _FEWEST_POSITIONS and chunk >= _FEWEST_GROUPS

    @property
    def weight_bytes(self) -> int:
        """Bytes of all packed weights."""
        taps = self.taps[0] * self.taps[1]
        return self.groups * self.blocks * taps * self.run * amx.ROW_BYTES


class TileOperands(ABC):
    """Where a product's operands lie and where its results go.

    Neighbouring positions are `pitch` bytes apart in the data.
    """

    pitch: int

    @abstractmethod
    def data(
        self, group: Expr, image: Expr, position: Expr, tap: tuple[Expr, Expr], element: Expr
    ) -> Expr:
        """A read of one element of the run of a tap."""

    @abstractmethod
    def weights(self, group: Expr, block: Expr, tap: tuple[Expr, Expr], row: Expr) -> Expr:
        """A read of row `row` (four bytes for each of 16 columns) of the run of a tap."""

    @abstractmethod
    def inside(self, position: Expr) -> Expr | None:
        """Whether a position is one of the output's (None: each is)."""

    @abstractmethod
    def place(self, group: Expr, image: Expr, position: Expr, column: Expr) -> list[Index]:
        """The output's indices."""


def default_decisions(product: TileProduct, spec: TargetSpec) -> dict[str, int]:
    """Two by two tiles, which need one load for each dot instruction; few rows: one by four."""
    row_tiles = 2 if product.positions > amx.ROWS else 1
    column_tiles = min(product.blocks, _MOST_ACCUMULATORS // row_tiles)
    lines = product.images * -(-product.positions // (row_tiles * amx.ROWS))
    blocks = lines * product.groups * -(-product.blocks // column_tiles)
    return {
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
        "columns_outer": int(product.weight_bytes > spec.l2_bytes // 2),
        "blocks_per_task": max(1, blocks // (_TASKS_PER_CORE * spec.cores)),
    }


def decision_space() -> dict[str, tuple[int, ...]]:
    """What a search may try; more tiles than the registers hold are cut down."""
    return {
        "row_tiles": (1, 2, 3, 4),
        "column_tiles": (1, 2, 3, 4),
        "columns_outer": (0, 1),
        "blocks_per_task": (1, 2, 4, 8, 16, 32),
    }


class TileEmitter:
    """Writes the loops of one product."""

    def __init__(
        self,
        product: TileProduct,
        operands: TileOperands,
        arithmetic: Arithmetic,
        tiles: amx.TileArithmetic,
        epilogue: Epilogue,
        decisions: Decisions,
    ):
        self.product = product
        self.operands = operands
        self.arithmetic = arithmetic
        self.tiles = tiles
        self.epilogue = epilogue
        most_rows = min(_MOST_ACCUMULATORS, -(-product.positions // amx.ROWS))
        self.row_tiles = min(decisions["row_tiles"], most_rows)
        most_columns = min(_MOST_ACCUMULATORS // self.row_tiles, product.blocks)
        self.column_tiles = min(decisions["column_tiles"], most_columns)
        self.lines = -(-product.positions // (self.row_tiles * amx.ROWS))
        # Tiles of equal height overlap the least: the last one starts where it still fits.
        self.rows = -(-product.positions // (self.lines * self.row_tiles))
        self.columns = -(-product.blocks // self.column_tiles)
        self.columns_outer = bool(decisions["columns_outer"])
        self.chunks = amx.reduction_chunks(product.run)
        self.chunk = product.run // self.chunks
        blocks = product.images * self.lines * product.groups * self.columns
        self.blocks_per_task = min(decisions["blocks_per_task"], blocks)
        # The operand with fewer tiles stays in registers during a step, the other passes by.
        self.accumulators = self.row_tiles * self.column_tiles
        spare = amx.TILES - self.accumulators
        if self.row_tiles <= self.column_tiles:
            self.data_registers = self.row_tiles
            self.weight_registers = min(self.column_tiles, spare - self.row_tiles)
        else:
            self.weight_registers = self.column_tiles
            self.data_registers = min(self.row_tiles, spare - self.column_tiles)

    def body(self, match: Match) -> Stmt:
        """The parallel loop over tasks of some blocks each.

        A task configures the tile registers of its thread and releases them at its end, so
        that no kernel depends on what another left behind.
        """
        lines = self.product.images * self.lines
        columns = self.product.groups * self.columns
        blocks, most = lines * columns, self.blocks_per_task
        configuration = amx.configure(
            [(self.rows, amx.ROW_BYTES)] * self.accumulators
            + [(self.rows, 4 * self.chunk)] * self.data_registers
            + [(self.chunk, amx.ROW_BYTES)] * self.weight_registers
        )

        def block(number: Expr) -> Stmt:
            if self.columns_outer:
                return self._block(number // lines, number % lines)
            return self._block(number % columns, number // columns)

        def task(p: Expr) -> Stmt:
            first = p * most
            count: Index = most if blocks % most == 0 else tirx.min(index(most), blocks - first)
            work = loops.serial("block", count, lambda i: block(first + i))
            return loops.sequence([configuration, work, amx.release()])

        return loops.tasks(-(-blocks // most), match.flops, match.bytes, task)

    def _block(self, column: Expr, line: Expr) -> Stmt:
        group, image = index(0), index(0)
        if self.product.groups > 1:
            group, column = column // self.columns, column % self.columns
        if self.product.images > 1:
            image, line = line // self.lines, line % self.lines
        rest = self.product.blocks % self.column_tiles
        full = self._tiles(group, column, image, line, self.column_tiles)
        if rest == 0:
            return full
        narrow = self._tiles(group, column, image, line, rest)
        return tirx.IfThenElse(column < self.product.blocks // self.column_tiles, full, narrow)

    def _tiles(self, group: Expr, column: Expr, image: Expr, line: Expr, vectors: int) -> Stmt:
        """One block with `vectors` columns of tiles."""
        product, operands = self.product, self.operands
        spilled = RegisterTile.make(
            self.row_tiles * self.rows, vectors, amx.ROW_BYTES // 4, self.arithmetic
        )
        starts = [self._start(line * self.row_tiles + r) for r in range(self.row_tiles)]

        def step(kh: Expr, kw: Expr, chunk: Expr) -> Stmt:
            tap, element = (kh, kw), chunk * (self.chunk * self.tiles.depth)
            first = column * self.column_tiles
            data = [operands.data(group, image, s, tap, element) for s in starts]
            weights = [
                operands.weights(group, first + v, tap, chunk * self.chunk) for v in range(vectors)
            ]
            return self._dots(data, weights)

        def kernel_row(kh: Expr) -> Stmt:
            return loops.serial(
                "kw",
                product.taps[1],
                lambda kw: loops.serial("chunk", self.chunks, lambda c: step(kh, kw, c)),
            )

        is_last: Expr | bool = vectors != self.column_tiles
        if product.blocks % self.column_tiles == 0:
            is_last = self.columns == 1 or tirx.EQ(column, index(self.columns - 1))

        def write(row_tile: int, row: Expr) -> Stmt:
            position = starts[row_tile] + row
            first = column * (self.column_tiles * spilled.lanes)
            stored = spilled.write_back(
                self.epilogue,
                lambda _, lane: operands.place(group, image, position, first + lane),
                product.spare,
                is_last,
                [row + row_tile * self.rows],
            )
            inside = operands.inside(position)
            return stored if inside is None else tirx.IfThenElse(inside, stored, None)

        return loops.allocate(
            [spilled.accumulators],
            loops.sequence(
                [
                    *(amx.zero(t) for t in range(self.row_tiles * vectors)),
                    loops.serial("kh", product.taps[0], kernel_row),
                    *self._spill(spilled),
                    *(
                        loops.serial("row", self.rows, lambda row, r=r: write(r, row))
                        for r in range(self.row_tiles)
                    ),
                ]
            ),
        )

    def _start(self, tile: Expr) -> Expr:
        """The first position of a row of tiles."""
        if self.product.positions == self.lines * self.row_tiles * self.rows:
            return tile * self.rows
        return tirx.min(tile * self.rows, index(self.product.positions - self.rows))

    def _dots(self, data: Sequence[Expr], weights: Sequence[Expr]) -> Stmt:
        """One step of the reduction for all accumulators."""

        def data_tile(r: int) -> int:
            return self.accumulators + r % self.data_registers

        def weight_tile(v: int) -> int:
            return self.accumulators + self.data_registers + v % self.weight_registers

        def dot(r: int, v: int) -> Stmt:
            return amx.dot(self.tiles, r * len(weights) + v, data_tile(r), weight_tile(v))

        load_data = [amx.load(data_tile(r), d, self.operands.pitch) for r, d in enumerate(data)]
        load_weights = [amx.load(weight_tile(v), w, amx.ROW_BYTES) for v, w in enumerate(weights)]
        statements: list[Stmt] = []
        if self.row_tiles <= self.column_tiles:
            statements.extend(load_data)
            for v, load in enumerate(load_weights):
                statements += [load, *(dot(r, v) for r in range(len(data)))]
        else:
            statements.extend(load_weights)
            for r, load in enumerate(load_data):
                statements += [load, *(dot(r, v) for v in range(len(weights)))]
        return loops.sequence(statements)

    def _spill(self, tile: RegisterTile) -> list[Stmt]:
        """The accumulators, from the tile registers to `tile`."""
        width = tile.vectors * tile.lanes
        return [
            amx.store(
                r * tile.vectors + v,
                loops.load(tile.accumulators, r * self.rows * width + v * tile.lanes),
                4 * width,
            )
            for r in range(self.row_tiles)
            for v in range(tile.vectors)
        ]
