"""Depthwise convolution of bytes by dot products: four rows of the window at a time.

VPDPBUSD multiplies four neighbouring bytes and adds them up. Neighbours in memory are channels,
which a depthwise convolution keeps apart; so the bytes of four rows of one column are interleaved
first, channel by channel::

    row 0   a0 a1 a2 ..
    row 1   b0 b1 b2 ..    ->    a0 b0 c0 0  a1 b1 c1 0  a2 b2 c2 0 ..
    row 2   c0 c1 c2 ..

One instruction then does what a kernel of three rows needs of one column for 16 channels, and a
column serves all the output pixels whose window covers it. Rows outside the image are read
elsewhere, against weights of zero; columns outside it are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, find_anchor
from tinsmith.targets.cpu.byte_stores import Results, store_results
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.window import ChannelwiseWorkload
from tinsmith.targets.cpu.schedules.channelwise import (
    ChannelwiseTemplate,
    default_tile,
    line_tasks,
)
from tinsmith.targets.cpu.schedules.window import Window
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match
from tinsmith.targets.x86.arithmetic import Vnni

_LANES, _ROWS = 16, Vnni.depth
# The tile; the loads of a column are shared by all pixels.
_PIXELS, _VECTORS = 8, 2


def has_dots(w: ChannelwiseWorkload, spec: TargetSpec) -> bool:
    """Whether the workload can be computed this way on `spec`.

    Interleaving wants byte permutations of whole registers (AVX512-VBMI).
    """
    machine = spec.vector_bits == 512 and Vnni.available(spec) and "avx512vbmi" in spec.cpu_features
    fits = w.operation == "multiply" and w.dtype == "uint8" and w.pad_value == 0
    return machine and fits and w.channels % _LANES == 0


class DepthwiseDots(ChannelwiseTemplate):
    """The channelwise template with one decision more, where it has a choice.

    `dots`: 1 for dot products, 0 for what the template does elsewhere.
    """

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        w: ChannelwiseWorkload = match.workload
        if not has_dots(w, spec):
            return super().default(match, spec)
        return {**default_tile(w, spec, _PIXELS, _VECTORS), "dots": 1}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        choices = {"dots": (0, 1)} if has_dots(match.workload, spec) else {}
        return {**super().space(match, spec), **choices}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if not decisions.get("dots") or anchor is None:
            return super().apply(function, match, decisions, spec)
        return anchor.rebuild(_Emitter(match, anchor, decisions, spec).body())


class _Emitter:
    """Writes the loops: tasks of an output line and a chunk of channels."""

    def __init__(self, match: Match, anchor: Anchor, decisions: Decisions, spec: TargetSpec):
        self.match = match
        self.w: ChannelwiseWorkload = match.workload
        self.spec = spec
        self.data, self.weights = anchor.operands[:2]
        self.epilogue = anchor.epilogue
        self.window = Window.of(self.w)
        self.pixels = min(decisions["pixels"], self.w.out_width)
        blocks = self.w.channels // _LANES
        self.vectors = min(decisions["vectors"], blocks)
        self.strips, self.rest = divmod(blocks, self.vectors)
        self.chunks = min(decisions["chunks"], self.strips)
        self.quads = -(-self.w.kernel_height // _ROWS)

    def body(self) -> Stmt:
        """The parallel loop over (output line, chunk of channels)."""
        return line_tasks(self.match, self.chunks, self._chunk)

    def _chunk(self, chunk: Expr, image: Expr, y: Expr) -> Stmt:
        width = self.vectors * _LANES
        per_chunk, more = divmod(self.strips, self.chunks)
        first: Index = chunk * per_chunk + tirx.min(chunk, index(more)) if self.chunks > 1 else 0
        count: Index = per_chunk + (chunk < more).astype("int32") if more else per_chunk
        strips = loops.serial(
            "strip",
            count,
            lambda i: self._strip(image, y, i * width, self.vectors),
            start=first,
        )
        if self.rest == 0:
            return strips
        tail: Stmt = self._strip(image, y, index(self.strips * width), self.rest)
        if self.chunks > 1:
            tail = tirx.IfThenElse(tirx.EQ(chunk, index(self.chunks - 1)), tail, None)
        return loops.sequence([strips, tail])

    def _strip(self, image: Expr, y: Expr, channel: Expr, vectors: int) -> Stmt:
        """One output line of `vectors` vectors of channels; its weights stay where they are."""
        w = self.w
        shape = (w.kernel_width * self.quads * vectors * _ROWS * _LANES,)
        weights = loops.local_buffer("interleaved_weights", shape, "int8")

        def slot(kw: int, quad: int, vector: int) -> Expr:
            size = _ROWS * _LANES
            return loops.ramp(((kw * self.quads + quad) * vectors + vector) * size, size)

        def row_of_weights(kh: int, kw: int, vector: int) -> Expr:
            nothing = loops.splat(tirx.const(0, "int8"), _LANES)
            if kh >= w.kernel_height:
                return nothing
            lanes = loops.ramp(channel + vector * _LANES, _LANES)
            loaded = tirx.BufferLoad(self.weights, [index(kh), index(kw), lanes])
            row = self.window.input_row(y, kh)
            return tirx.Select(tirx.all(row >= 0, row < w.in_height), loaded, nothing)

        prepare = [
            tirx.BufferStore(
                weights,
                _interleaved([row_of_weights(quad * _ROWS + i, kw, v) for i in range(_ROWS)]),
                [slot(kw, quad, v)],
            )
            for kw in range(w.kernel_width)
            for quad in range(self.quads)
            for v in range(vectors)
        ]

        def tile(x: Expr, border: int | None) -> Stmt:
            def weight(kw: int, quad: int, vector: int) -> Expr:
                return tirx.BufferLoad(weights, [slot(kw, quad, vector)])

            return self._tile(image, y, x, channel, vectors, border, weight)

        return loops.allocate(
            [weights], loops.sequence([*prepare, self.window.cover_line(self.pixels, tile)])
        )

    def _tile(
        self,
        image: Expr,
        y: Expr,
        x: Expr,
        channel: Expr,
        vectors: int,
        border: int | None,
        weight: Callable[[int, int, int], Expr],
    ) -> Stmt:
        w, window = self.w, self.window
        sums = loops.local_buffer("sums", (self.pixels * vectors * _LANES,), "int32")
        column = loops.local_buffer("column", (_ROWS * _LANES,), "uint8")
        whole = loops.ramp(0, _ROWS * _LANES)

        def sum_at(pixel: int, vector: int) -> Expr:
            return loops.ramp((pixel * vectors + vector) * _LANES, _LANES)

        def row(kh: int, offset: int, vector: int) -> Expr:
            # A row beyond the kernel meets weights of zero: any will do.
            kh = min(kh, w.kernel_height - 1)
            inside = tirx.max(index(0), tirx.min(window.input_row(y, kh), index(w.in_height - 1)))
            lanes = loops.ramp(channel + vector * _LANES, _LANES)
            place = window.input_column(x, 0) + offset
            return tirx.BufferLoad(self.data, [image, inside, place, lanes])

        # Which pixels need the column so far to the right of the tile's first.
        users: dict[int, list[tuple[int, int]]] = {}
        for kw in range(w.kernel_width):
            valid = list(range(self.pixels))
            if border is not None:
                valid = window.valid_pixels(border, self.pixels, kw)
            for pixel in valid:
                offset = pixel * w.stride_width + kw * w.dilation_width
                users.setdefault(offset, []).append((pixel, kw))

        def products(offset: int, quad: int, vector: int) -> list[Stmt]:
            rows = [row(quad * _ROWS + i, offset, vector) for i in range(_ROWS)]
            four = tirx.BufferLoad(column, [whole])
            return [
                tirx.BufferStore(column, _interleaved(rows), [whole]),
                *(
                    tirx.BufferStore(
                        sums,
                        tirx.call_llvm_pure_intrin(
                            "int32x16",
                            "llvm.x86.avx512.vpdpbusd.512",
                            tirx.BufferLoad(sums, [sum_at(pixel, vector)]),
                            four,
                            weight(kw, quad, vector),
                        ),
                        [sum_at(pixel, vector)],
                    )
                    for pixel, kw in users[offset]
                ),
            ]

        def results(pixel: int, vector: int) -> Results:
            def at(lane: Index) -> list[Index]:
                return [image, y, x + pixel, channel + vector * _LANES + index(lane)]

            def value(lane: Expr) -> Expr:
                slot = index((pixel * vectors + vector) * _LANES) + lane
                return self.epilogue.value(tirx.BufferLoad(sums, [slot]), at(lane))

            return Results(_LANES, at(0), value, pixel)

        places = [(p, v) for p in range(self.pixels) for v in range(vectors)]
        zero = loops.splat(tirx.const(0, "int32"), _LANES)
        return loops.allocate(
            [sums, column],
            loops.sequence(
                [
                    *(tirx.BufferStore(sums, zero, [sum_at(p, v)]) for p, v in places),
                    *(
                        statement
                        for offset in sorted(users)
                        for quad in range(self.quads)
                        for vector in range(vectors)
                        for statement in products(offset, quad, vector)
                    ),
                    store_results(self.epilogue, [results(p, v) for p, v in places], self.spec),
                ]
            ),
        )


def _interleaved(rows: list[Expr]) -> Expr:
    """The bytes of four vectors, those of one lane side by side."""
    order = [index(r * _LANES + lane) for lane in range(_LANES) for r in range(_ROWS)]
    return tirx.Shuffle(rows, order)
