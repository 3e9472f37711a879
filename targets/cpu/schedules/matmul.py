"""Matrix products of any size: packed weights, batches of matrices, matrix times vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import Arithmetic, arithmetic_named, sums_floats
from tinsmith.targets.cpu.loops import Index, index, unravel
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm
from tinsmith.targets.cpu.operators.matmul import MatmulWorkload
from tinsmith.targets.cpu.schedules.decompression import (
    Decompression,
    Panel,
    Weights,
    panel_pays,
    registers_needed,
    shared_lines,
)
from tinsmith.targets.cpu.schedules.half_panel import (
    HalfPanel,
    has_half_weights,
    panel_arithmetic,
    widened_panel_pays,
)
from tinsmith.targets.cpu.schedules.register_tile import (
    RegisterTile,
    choose_tile,
    fills_registers,
    tile_choices,
)
from tinsmith.targets.cpu.schedules.widening import widen
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template

_LEAST_ROW_TILES = 4


class MatmulTemplate(Template):
    """Matrix product, in any arithmetic.

    Decisions: `rows` and `vectors` (register tile), `columns_outer` (1: each task keeps its
    columns of the right operand and walks over the rows; 0: the other way round), `prefetch`
    (1: while one column tile is in use, the next one is asked for); where the right operand is
    compressed or has 16 bits, `panels` (1: each task decompresses or widens its columns once).
    """

    name = "matmul"
    version = 2

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "matmul" or find_anchor(function) is None:
            return None
        workload = MatmulWorkload.from_json(dict(found))
        return Match(workload, workload.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return sums_floats(match.workload.arithmetic)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        w: MatmulWorkload = match.workload
        lanes, vectors = _columns(w, spec)
        rows = _rows(w)
        # The sums for a zero point take a row of their own, see `_Emitter`.
        spare = 1 if w.zero_point else 0
        arithmetic = arithmetic_named(w.arithmetic)

        def tile(form: CompressedForm | None, kind: Arithmetic) -> tuple[int, int]:
            registers = registers_needed(form)
            found = choose_tile(rows + spare, vectors, spec, kind, registers)
            return max(1, found[0] - spare), found[1]

        tile_rows, tile_vectors = tile(None, panel_arithmetic(arithmetic, True))
        storage = {}
        if has_half_weights(arithmetic):
            passes = shared_lines(-(-rows // tile_rows), -(-vectors // tile_vectors), spec)
            pays = widened_panel_pays(passes, w.k, tile_vectors * lanes, spec)
            storage["panels"] = int(pays)
            if not pays:
                tile_rows, tile_vectors = tile(None, arithmetic)
        if w.compressed is not None:
            column_tiles = -(-vectors // tile_vectors)
            passes = shared_lines(-(-rows // tile_rows), column_tiles, spec)
            storage["panels"] = int(panel_pays(w.compressed, passes, tile_vectors, lanes, spec))
            if not storage["panels"]:
                tile_rows, tile_vectors = tile(w.compressed, arithmetic)
        columns_outer = int(4 * w.k * vectors * lanes > spec.l2_bytes // 2)
        chosen = {"rows": tile_rows, "vectors": tile_vectors, "columns_outer": columns_outer}
        # Weights of floats, walked once per run, come from memory; fewer bytes come by themselves.
        # With few row tiles there is too little to compute between the requests.
        floats = arithmetic.accumulator == "float32" and rows >= _LEAST_ROW_TILES * tile_rows
        prefetch = columns_outer and floats and _can_prefetch(w) and not storage.get("panels")
        return {**chosen, "prefetch": int(prefetch), **storage}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        w: MatmulWorkload = match.workload
        _, vectors = _columns(w, spec)
        storage = {"panels": (0, 1)} if _may_have_panels(w) else {}
        tiles = tile_choices(_rows(w), vectors, spec, arithmetic_named(w.arithmetic))
        prefetch = (0, 1) if _can_prefetch(w) else (0,)
        return {**tiles, "columns_outer": (0, 1), "prefetch": prefetch, **storage}

    def entries_first(self, match: Match, decisions: Decisions) -> Decisions:
        return {**decisions, "columns_outer": 0, "prefetch": 0}

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        w: MatmulWorkload = match.workload
        if decisions["prefetch"] and not decisions["columns_outer"]:
            return False
        panels = bool(decisions.get("panels"))
        registers = registers_needed(None if panels else w.compressed)
        arithmetic = panel_arithmetic(arithmetic_named(w.arithmetic), panels)
        return fills_registers(decisions, spec, arithmetic, registers)

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if anchor is None:
            raise ValueError("what follows the matrix product is not elementwise")
        return anchor.rebuild(_Emitter(match, anchor, decisions, spec).body())


def _rows(w: MatmulWorkload) -> int:
    """Of the matrix that is cut into tiles: of all batches, where they share the right operand."""
    return w.m * math.prod(w.batch) if w.shares_right else w.m


def _can_prefetch(w: MatmulWorkload) -> bool:
    """Whether the right operand is one matrix of packed columns, read as it lies."""
    return w.lanes > 0 and w.shares_right and w.compressed is None


def _may_have_panels(w: MatmulWorkload) -> bool:
    """Whether the columns of the right operand have to be decompressed or widened."""
    return w.compressed is not None or has_half_weights(arithmetic_named(w.arithmetic))


def _columns(w: MatmulWorkload, spec: TargetSpec) -> tuple[int, int]:
    """Lanes of a column vector, and how many such vectors there are."""
    if w.lanes:
        return w.lanes, -(-w.n // w.lanes)
    lanes = min(arithmetic_named(w.arithmetic).lanes(spec), w.n)
    return lanes, w.n // lanes


class _Emitter:
    def __init__(self, match: Match, anchor: Anchor, decisions: Decisions, spec: TargetSpec):
        self.match = match
        self.w: MatmulWorkload = match.workload
        w = self.w
        self.arithmetic = arithmetic_named(self.w.arithmetic)
        self.spec = spec
        self.left, self.right, *self.scales_and_levels = anchor.operands
        self.epilogue = anchor.epilogue
        self.lanes, self.blocks = _columns(w, spec)
        # Rows of all batches form one matrix where they meet the same right operand.
        self.merged = w.shares_right
        self.batches = 1 if self.merged else math.prod(w.batch)
        self.m = _rows(w)
        self.rows = min(decisions["rows"], self.m)
        self.row_tiles = -(-self.m // self.rows)
        self.vectors = min(decisions["vectors"], self.blocks)
        self.column_tiles = -(-w.n // (self.vectors * self.lanes))
        self.columns_outer = bool(decisions["columns_outer"])
        self.steps = -(-w.k // self.arithmetic.depth)
        self.panels = bool(decisions.get("panels", 0))
        self.prefetches = bool(decisions["prefetch"]) and self.columns_outer and _can_prefetch(w)
        self.prefetches = self.prefetches and not self.panels
        self.arithmetic = panel_arithmetic(self.arithmetic, self.panels)

    def body(self) -> Stmt:
        """The parallel loop over (batch, row tile, column tile) tasks."""
        if self.panels:
            return self._panel_tasks()
        tiles = self.row_tiles * self.column_tiles

        def task(p: Expr) -> Stmt:
            batch, tile = (p // tiles, p % tiles) if self.batches > 1 else (index(0), p)
            if self.columns_outer:
                column, row = tile // self.row_tiles, tile % self.row_tiles
            else:
                row, column = tile // self.column_tiles, tile % self.column_tiles
            return self._columns_of(batch, row, column)

        tasks = self.batches * tiles
        if self.arithmetic.widened is None:
            return loops.tasks(tasks, self.match.flops, self.match.bytes, task)
        self.left, conversion = widen(self.left, self.arithmetic.widened, self.spec)
        products = loops.tasks(tasks, self.match.flops, self.match.bytes, task)
        return loops.allocate([self.left], loops.sequence([conversion, products]))

    def _first_row(self, tile: Expr) -> Expr:
        start = tile * self.rows
        return tirx.min(start, index(self.m - self.rows)) if self.m % self.rows else start

    def _panel_tasks(self) -> Stmt:
        """The parallel loop over column tiles and some row tiles each, with a panel for all."""
        tiles = shared_lines(self.row_tiles, self.column_tiles, self.spec)
        chunks = -(-self.row_tiles // tiles)

        def of(column: Expr, first: Expr, vectors: int) -> Stmt:
            panel, fill = self._panel(column, vectors)
            count = tirx.min(index(tiles), index(self.row_tiles) - first)
            walk = loops.serial(
                "row",
                count if self.row_tiles % tiles else tiles,
                lambda row: self._tile(
                    index(0),
                    row,
                    column,
                    column * (self.vectors * self.lanes),
                    vectors,
                    panel,
                ),
                start=first,
            )
            return loops.allocate([panel.buffer], loops.sequence([fill, walk]))

        def task(p: Expr) -> Stmt:
            column, first = p // chunks, p % chunks * tiles
            rest = self.blocks % self.vectors
            full = of(column, first, self.vectors)
            if rest == 0:
                return full
            narrow = of(column, first, rest)
            return tirx.IfThenElse(column < self.blocks // self.vectors, full, narrow)

        return loops.tasks(self.column_tiles * chunks, self.match.flops, self.match.bytes, task)

    def _panel(self, column: Expr, vectors: int) -> tuple[Panel | HalfPanel, Stmt]:
        """The columns of a tile as float32 in memory, and the statement that writes them."""
        if self.w.compressed is not None:
            source = self._decompression(vectors)
            panel = Panel.make(source.form, vectors, self.lanes)
            return panel, panel.fill(source, lambda v: [column * self.vectors + v])
        wide = HalfPanel.make(vectors, self.steps, self.lanes)
        lead = [index(0)] * len(self.w.right_batch)

        def stored(v: int, k: Expr) -> Expr:
            place = [*lead, column * self.vectors + v, k, loops.ramp(0, self.lanes)]
            return tirx.BufferLoad(self.right, place)

        return wide, wide.fill(stored)

    def _decompression(self, vectors: int) -> Decompression:
        if self.w.compressed is None:
            raise ValueError("the right operand is not compressed")
        operands = (self.right, *self.scales_and_levels)
        return Decompression.make(self.w.compressed, operands, vectors, self.lanes, self.spec)

    def _columns_of(self, batch: Expr, row_tile: Expr, column: Expr) -> Stmt:
        width = self.vectors * self.lanes
        if not self.w.lanes:
            # Nothing is packed: the last tile overlaps the one before it.
            start = column * width
            if self.w.n % width:
                start = tirx.min(start, index(self.w.n - width))
            return self._tile(batch, row_tile, column, start, self.vectors)
        rest = self.blocks % self.vectors
        full = self._tile(batch, row_tile, column, column * width, self.vectors)
        if rest == 0:
            return full
        narrow = self._tile(batch, row_tile, column, column * width, rest)
        return tirx.IfThenElse(column < self.blocks // self.vectors, full, narrow)

    def _tile(
        self,
        batch: Expr,
        row_tile: Expr,
        column: Expr,
        start: Expr,
        vectors: int,
        panel: Panel | HalfPanel | None = None,
    ) -> Stmt:
        w = self.w
        row = self._first_row(row_tile)
        tile = RegisterTile.make(self.rows, vectors, self.lanes, self.arithmetic)
        depth = self.arithmetic.depth
        lead = unravel(batch, w.batch) if self.batches > 1 else [index(0)] * len(w.batch)

        # Of the right operand's columns, for the zero point.
        sums = None
        if w.zero_point:
            sums = RegisterTile.make(1, vectors, self.lanes, self.arithmetic)
        compressed = None
        if w.compressed is not None and panel is None:
            compressed = self._decompression(vectors)

        def step(k: Expr, stored: Weights | None = None) -> Stmt:
            def value(r: int) -> Expr:
                lead_left = _broadcast(lead, w.left_batch)
                return loops.load(self.left, *lead_left, row + r, loops.ramp(k * depth, depth))

            def weights(v: int) -> Expr:
                if panel is not None:
                    return panel.load(v, 0, k)
                if w.lanes:
                    place = [column * self.vectors + v, k, loops.ramp(0, self.lanes * depth)]
                    return tirx.BufferLoad(self.right, [*_broadcast(lead, w.right_batch), *place])
                lanes = loops.ramp(start + v * self.lanes, self.lanes)
                return tirx.BufferLoad(self.right, [*_broadcast(lead, w.right_batch), k, lanes])

            products = tile.multiply_add(value, stored or weights)
            if sums is None:
                return products
            ones = loops.splat(tirx.const(1, self.left.ty.dtype), depth)
            return loops.sequence([products, sums.multiply_add(lambda _: ones, weights)])

        def reduction() -> Stmt:
            if self.prefetches:
                return self._prefetching(row_tile, column, step)
            if compressed is None:
                return loops.serial("k", self.steps, step)
            return compressed.channels(lambda v: [column * self.vectors + v], [], 0, step)

        def position(r: int, lane: Expr) -> list[Index]:
            if not self.merged:
                return [*lead, row + r, start + lane]
            return [*unravel(row + r, (*w.batch, w.m)), start + lane]

        is_last: Expr | bool = tile.vectors != self.vectors
        if self.blocks % self.vectors == 0:
            is_last = self.column_tiles == 1 or tirx.EQ(column, index(self.column_tiles - 1))
        spare = self.blocks * self.lanes - w.n if w.lanes else 0
        registers = [tile.accumulators, *(compressed.registers if compressed else ())]
        return loops.allocate(
            [*registers, *([sums.accumulators] if sums else [])],
            loops.sequence(
                [
                    tile.clear(),
                    sums.clear() if sums else None,
                    reduction(),
                    tile.in_rows(),
                    sums.in_rows() if sums else None,
                    sums.scale(-w.zero_point) if sums else None,
                    tile.add_row(sums) if sums else None,
                    tile.write_back(self.epilogue, position, spare, is_last),
                ]
            ),
        )

    def _prefetching(self, row_tile: Expr, column: Expr, step: Callable[[Expr], Stmt]) -> Stmt:
        """All steps of the reduction, and requests for a part of the next column tile.

        Each of the row tiles asks for an equal part, so that requests are few at any time.
        """
        w = self.w
        parts = -(-self.steps // self.row_tiles)
        length = self.steps // parts

        def ahead(part: Expr, vector: int) -> Stmt:
            block = tirx.min((column + 1) * self.vectors + vector, index(self.blocks - 1))
            place = tirx.min(row_tile * parts + part, index(self.steps - 1))
            lead = [index(0)] * len(w.right_batch)
            return loops.prefetch(loops.load(self.right, *lead, block, place, 0))

        def one(part: Expr) -> Stmt:
            steps = loops.serial("k", length, step, start=part * length)
            return loops.sequence([*(ahead(part, v) for v in range(self.vectors)), steps])

        rest = self.steps - parts * length
        return loops.sequence(
            [
                loops.serial("part", parts, one),
                loops.serial("k", rest, step, start=parts * length) if rest else None,
            ]
        )


def _broadcast(lead: Sequence[Expr], extents: Sequence[int]) -> list[Expr]:
    """The batch indices of an operand with leading `extents`, where the output's are `lead`."""
    kept = lead[len(lead) - len(extents) :]
    return [index(0) if e == 1 else i for i, e in zip(kept, extents, strict=True)]
