"""Winograd's convolution: transform a block of tiles, multiply, transform back.

A task owns some tiles (neighbours in the image, across its lines) and some output
channels. It transforms its patches of the input into a scratch buffer
`[position in the patch][tile][input channel]`; then, for one group of output channel
vectors after the other, it computes `(tile+2)^2` small matrix products with the register
tile of the direct convolution, and transforms these back while they are in the cache,
epilogue included. The scratch buffers belong to the thread and are sized for its L2 cache.
The weights of each position are fetched into that cache while the one before is computed.

Weights of 16 bits are transformed by the task: see `winograd_taps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, Epilogue, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import Float32
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload
from tinsmith.targets.cpu.schedules.both_axes import transform_both_axes
from tinsmith.targets.cpu.schedules.register_tile import RegisterTile, fills_registers, least_sizes
from tinsmith.targets.cpu.schedules.winograd_taps import ProductSize, TapProducts
from tinsmith.targets.cpu.winograd_matrices import winograd_matrices
from tinsmith.targets.cpu.winograd_plan import MOST_TILES, MOST_VECTORS, best_plan
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


class WinogradTemplate(Template):
    """3x3 convolution with transformed weights.

    Decisions: `tiles` (of a task), `rows` (tiles of a register tile), `vectors` (output
    channel vectors of a register tile), `chunks` (into how many tasks the output channels
    of a block of tiles are cut; each transforms the input for itself).
    """

    name = "winograd"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "winograd" or find_anchor(function) is None:
            return None
        workload = WinogradWorkload.from_json(dict(found))
        return Match(workload, workload.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return True

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        return asdict(best_plan(match.workload, spec))

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        w: WinogradWorkload = match.workload
        blocks = w.convolution.blocks
        return {
            "tiles": least_sizes(math.prod(w.tiles), MOST_TILES),
            "rows": tuple(range(1, spec.vector_registers - 1)),
            "vectors": tuple(range(1, min(blocks, MOST_VECTORS) + 1)),
            "chunks": tuple(c for c in (1, 2, 4, 8) if c <= min(blocks, 2 * spec.cores)),
        }

    def entries_first(self, match: Match, decisions: Decisions) -> Decisions:
        """Equal blocks of one image's tiles, where these fill a register tile."""
        of_image, rows = math.prod(match.workload.tiles[1:]), decisions["rows"]
        if of_image < rows or decisions["tiles"] <= rows:
            return decisions
        blocks = -(-of_image // min(decisions["tiles"], of_image))
        return {**decisions, "tiles": -(-of_image // blocks)}

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        least = decisions["rows"] in least_sizes(decisions["tiles"], spec.vector_registers)
        return least and fills_registers(decisions, spec, Float32())

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if anchor is None:
            raise ValueError("what follows the convolution is not elementwise")
        return anchor.rebuild(_Emitter(match, anchor, decisions, spec).body())


@dataclass(frozen=True)
class _Place:
    """A tile: its image, and its first output pixel."""

    image: Expr
    y: Expr
    x: Expr


class _Emitter:
    def __init__(self, match: Match, anchor: Anchor, decisions: Decisions, spec: TargetSpec):
        self.match = match
        self.work: WinogradWorkload = match.workload
        self.w: ConvolutionWorkload = self.work.convolution
        w = self.w
        self.data, self.weights = anchor.operands
        self.epilogue = anchor.epilogue
        self.spec = spec
        self.n, self.tile = self.work.patch, self.work.tile
        self.matrices = winograd_matrices(self.tile)
        self.count = math.prod(self.work.tiles)
        self.tiles = min(decisions["tiles"], self.count)
        self.rows = min(decisions["rows"], self.tiles)
        self.vectors = min(decisions["vectors"], w.blocks)
        self.groups = -(-w.blocks // self.vectors)
        self.chunks = min(decisions["chunks"], self.groups)
        self.lanes = min(spec.float_lanes, w.in_channels)
        # Without the additional vector, the positions of a tile would share cache sets. The
        # buffer is flat, because TVM would compact a dimension that is not used up.
        self.pitch = self.tiles * w.in_channels + spec.float_lanes
        self.patches = tirx.decl_buffer((self.n**2 * self.pitch,), "float32", "patches")
        self.products = tirx.decl_buffer(
            (self.tiles, self.n**2, self.vectors * w.lanes), "float32", "products"
        )
        self.taps: TapProducts | None = None
        if self.work.transforms_weights:
            size = ProductSize(self.tiles, self.rows, self.vectors, self.pitch)
            self.taps = TapProducts.make(
                self.work, size, self.weights, self.patches, self.products, spec
            )

    def body(self) -> Stmt:
        """The parallel loop over (block of tiles, chunk of channels) tasks."""

        def task(p: Expr) -> Stmt:
            block, chunk = (p // self.chunks, p % self.chunks) if self.chunks > 1 else (p, index(0))
            first = block * self.tiles
            if self.count % self.tiles:
                first = tirx.min(first, index(self.count - self.tiles))
            transform = loops.serial("tile", self.tiles, lambda t: self._transform(first + t, t))
            buffers = [self.patches, self.products]
            if self.taps is not None:
                buffers.append(self.taps.transformed)
            return loops.allocate(
                buffers, loops.sequence([transform, self._multiply(first, chunk)])
            )

        count = -(-self.count // self.tiles) * self.chunks
        return loops.tasks(count, self.match.flops, self.match.bytes, task)

    def _place(self, tile: Expr) -> _Place:
        image, down, across = loops.unravel(tile, self.work.tiles)
        return _Place(image, down * self.tile, across * self.tile)

    # The transform of the input.

    def _transform(self, tile: Expr, slot: Expr) -> Stmt:
        """All channels of the patch of `tile`, transformed into `slot` of the scratch."""
        w, n = self.w, self.n
        place = self._place(tile)
        top, left = place.y - w.pad_top, place.x - w.pad_left
        lanes = self.lanes

        def pixel(row: Expr, column: Expr, channel: Expr) -> Expr:
            return loops.load(self.data, place.image, row, column, loops.ramp(channel, lanes))

        def inside(channel: Expr) -> Stmt:
            return self._transformed(slot, channel, lambda i, j: pixel(top + i, left + j, channel))

        def border(channel: Expr) -> Stmt:
            """What lies outside is read from the image's edge, and replaced by zero."""
            zero = loops.splat(tirx.const(0.0, "float32"), lanes)

            def source(i: int, j: int) -> Expr:
                row, column = top + i, left + j
                exists = tirx.all(row >= 0, row < w.in_height, column >= 0, column < w.in_width)
                nearest = pixel(_clamped(row, w.in_height), _clamped(column, w.in_width), channel)
                return tirx.Select(exists, nearest, zero)

            return self._transformed(slot, channel, source)

        def channels(body: Callable[[Expr], Stmt]) -> Stmt:
            steps = -(-w.in_channels // lanes)
            most = w.in_channels - lanes

            def vector(c: Expr) -> Stmt:
                first = c * lanes
                return body(tirx.min(first, index(most)) if w.in_channels % lanes else first)

            return loops.serial("channel", steps, vector)

        whole = tirx.all(top >= 0, top + n <= w.in_height, left >= 0, left + n <= w.in_width)
        return tirx.IfThenElse(whole, channels(inside), channels(border))

    def _transformed(self, slot: Expr, channel: Expr, source: Callable[[int, int], Expr]) -> Stmt:
        """`B^T d B` of one vector of channels."""
        w, n, lanes = self.w, self.n, self.lanes

        def sink(i: int, j: int, value: Expr) -> Stmt:
            first = slot * w.in_channels + channel + (i * n + j) * self.pitch
            return tirx.BufferStore(self.patches, value, [loops.ramp(first, lanes)])

        return transform_both_axes(self.matrices.input, lanes, source, sink)

    # The products and the transform back.

    def _multiply(self, first: Expr, chunk: Expr) -> Stmt:
        """All output channels of a chunk for a block of tiles."""
        rest = self.w.blocks % self.vectors

        def group(number: Expr) -> Stmt:
            products = self._products(number, self.vectors)
            vectors: Index = self.vectors
            if rest:
                is_last = tirx.EQ(number, index(self.groups - 1))
                products = tirx.IfThenElse(is_last, self._products(number, rest), products)
                vectors = tirx.Select(is_last, index(rest), index(self.vectors))

            def back(tile: Expr) -> Stmt:
                place = self._place(first + tile)
                return loops.serial("vector", vectors, lambda v: self._back(place, tile, number, v))

            return loops.sequence([products, loops.serial("tile", self.tiles, back)])

        if self.chunks == 1:
            return loops.serial("group", self.groups, group)
        per_chunk, more = divmod(self.groups, self.chunks)
        start: Expr = chunk * per_chunk
        count: Index = per_chunk
        if more:
            start = start + tirx.min(chunk, index(more))
            count = per_chunk + (chunk < more).astype("int32")
        return loops.serial("group", count, group, start=start)

    def _products(self, group: Expr, vectors: int) -> Stmt:
        """Tiles x input channels times input channels x `vectors` of outputs, at all positions."""
        if self.taps is not None:
            return self.taps.multiply(group, vectors)
        w = self.w
        count = -(-self.tiles // self.rows)

        def ahead(position: Expr, number: Expr, ic: Expr) -> list[Stmt]:
            """Asks for the weights of the next position, each block of rows for its vectors."""
            is_last = tirx.EQ(position, index(self.n**2 - 1))
            following = group * self.vectors + tirx.Select(is_last, index(vectors), index(0))
            place = [tirx.Select(is_last, index(0), position + 1), ic, 0]
            share = -(-vectors // count)
            wanted = [tirx.min(number * share + v, index(vectors - 1)) for v in range(share)]
            blocks = [tirx.min(following + v, index(w.blocks - 1)) for v in wanted]
            return [loops.prefetch(loops.load(self.weights, b, *place)) for b in blocks]

        def block(position: Expr, number: Expr) -> Stmt:
            start = number * self.rows
            if self.tiles % self.rows:
                start = tirx.min(start, index(self.tiles - self.rows))
            tile = RegisterTile.make(self.rows, vectors, w.lanes, Float32())

            def step(ic: Expr) -> Stmt:
                product = tile.multiply_add(
                    lambda r: loops.load(
                        self.patches, position * self.pitch + (start + r) * w.in_channels + ic
                    ),
                    lambda v: tirx.BufferLoad(
                        self.weights,
                        [group * self.vectors + v, position, ic, loops.ramp(0, w.lanes)],
                    ),
                )
                return loops.sequence([*ahead(position, number, ic), product])

            return loops.allocate(
                [tile.accumulators],
                loops.sequence(
                    [
                        tile.clear(),
                        loops.serial("ic", w.in_channels, step),
                        tile.write_back(
                            Epilogue(self.products, lambda value, _: value),
                            lambda row, column: [start + row, position, column],
                        ),
                    ]
                ),
            )

        return loops.serial(
            "position",
            self.n**2,
            lambda p: loops.serial("block", count, lambda number: block(p, number)),
        )

    def _back(self, place: _Place, tile: Expr, group: Expr, vector: Expr) -> Stmt:
        """`A^T M A` of one tile and one vector of output channels, epilogue and store."""
        w, m = self.w, self.tile
        block = group * self.vectors + vector
        outputs = loops.local_buffer("outputs", (m * m * w.lanes,), "float32")

        def source(i: int, j: int) -> Expr:
            lanes = loops.ramp(vector * w.lanes, w.lanes)
            return loops.load(self.products, tile, i * self.n + j, lanes)

        def sink(i: int, j: int, value: Expr) -> Stmt:
            return tirx.BufferStore(outputs, value, [loops.ramp((i * m + j) * w.lanes, w.lanes)])

        def stored(lanes: int) -> Stmt:
            def pixel(i: int, j: int) -> Stmt:
                def lane(offset: Expr) -> Stmt:
                    indices = [place.image, place.y + i, place.x + j, block * w.lanes + offset]
                    register = loops.load(outputs, index((i * m + j) * w.lanes) + offset)
                    return loops.store(
                        self.epilogue.output, indices, self.epilogue.value(register, indices)
                    )

                return loops.vectorized("lane", lanes, lane)

            return self._covered(place, pixel)

        spare = w.blocks * w.lanes - w.out_channels
        store = stored(w.lanes)
        if spare and w.blocks == 1:
            store = stored(w.lanes - spare)
        elif spare:
            store = tirx.IfThenElse(block < w.blocks - 1, store, stored(w.lanes - spare))
        transform = transform_both_axes(self.matrices.output, w.lanes, source, sink)
        return loops.allocate([outputs], loops.sequence([transform, store]))

    def _covered(self, place: _Place, pixel: Callable[[int, int], Stmt]) -> Stmt:
        """`pixel` for those pixels of a tile that lie in the image."""
        w, m = self.w, self.tile
        rows, columns = w.out_height % m or m, w.out_width % m or m

        def line(i: int) -> Stmt:
            always = loops.sequence(pixel(i, j) for j in range(columns))
            if columns == m:
                return always
            rest = loops.sequence(pixel(i, j) for j in range(columns, m))
            inner = place.x + m <= w.out_width
            return loops.sequence([always, tirx.IfThenElse(inner, rest, None)])

        always = loops.sequence(line(i) for i in range(rows))
        if rows == m:
            return always
        rest = loops.sequence(line(i) for i in range(rows, m))
        inner = place.y + m <= w.out_height
        return loops.sequence([always, tirx.IfThenElse(inner, rest, None)])


def _clamped(position: Expr, extent: int) -> Expr:
    return tirx.max(index(0), tirx.min(position, index(extent - 1)))
