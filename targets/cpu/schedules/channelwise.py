"""Depthwise convolution and pooling on NHWC data: vectorised over channels.

A tile of `pixels` neighbouring output pixels shares its input columns, which
stay in registers while the window slides over them; see `window` for borders.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import vector as vector_type
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.nan_propagation import lowest
from tinsmith.targets.cpu.operators.window import ChannelwiseWorkload, reciprocal_count
from tinsmith.targets.cpu.schedules.register_tile import least_sizes
from tinsmith.targets.cpu.schedules.window import Window
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template


class ChannelwiseTemplate(Template):
    """Depthwise convolution and pooling of floats; of 8-bit integers all but the average.

    Decisions: `pixels` (output pixels of a tile), `vectors` (channel vectors of a tile),
    `chunks` (into how many tasks the channels of an output line are cut).
    """

    name = "channelwise"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "channelwise" or find_anchor(function) is None:
            return None
        workload = ChannelwiseWorkload(**found)
        return Match(workload, workload.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return match.workload.operation == "multiply" and "float" in match.workload.dtype

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        w: ChannelwiseWorkload = match.workload
        # Accumulators, the input columns they share, and one kernel row of weights.
        weights = w.kernel_width if w.operation == "multiply" else 0
        budget = spec.vector_registers - weights - 1
        reach = w.kernel_width * w.dilation_width
        most = min((budget - reach) // (1 + w.stride_width), 14)
        return default_tile(w, spec, most, 1)

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        w: ChannelwiseWorkload = match.workload
        whole = max(1, w.channels // spec.float_lanes)
        return {
            "pixels": least_sizes(w.out_width, 16),
            "vectors": tuple(range(1, min(whole, 4) + 1)),
            "chunks": tuple(c for c in (1, 2, 3, 4, 6, 8, 12, 16) if c <= whole),
        }

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        return decisions["pixels"] * decisions["vectors"] <= spec.vector_registers

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if anchor is None:
            raise ValueError("what follows the window is not elementwise")
        return anchor.rebuild(_Emitter(match, anchor, decisions, spec).body())


def default_tile(
    w: ChannelwiseWorkload, spec: TargetSpec, most_pixels: int, most_vectors: int
) -> dict[str, int]:
    """Pixels in equal tiles, and chunks such that each core has several tasks."""
    pixels = max(1, min(w.out_width, most_pixels))
    pixels = -(-w.out_width // -(-w.out_width // pixels))
    whole = w.channels // spec.float_lanes
    vectors = min(most_vectors, max(1, whole))
    chunks = 1
    while w.batch * w.out_height * chunks < 8 * spec.cores and chunks * 2 <= whole // vectors:
        chunks *= 2
    return {"pixels": pixels, "vectors": vectors, "chunks": chunks}


def line_tasks(match: Match, chunks: int, make: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
    """The parallel loop over output lines and `chunks` of channels: `make(chunk, image, y)`."""
    w: ChannelwiseWorkload = match.workload

    def task(p: Expr) -> Stmt:
        line, chunk = (p // chunks, p % chunks) if chunks > 1 else (p, index(0))
        image, y = index(0), line
        if w.batch > 1:
            image, y = line // w.out_height, line % w.out_height
        return make(chunk, image, y)

    return loops.tasks(w.batch * w.out_height * chunks, match.flops, match.bytes, task)


class _Emitter:
    def __init__(
        self,
        match: Match,
        anchor: Anchor,
        decisions: Decisions,
        spec: TargetSpec,
    ):
        self.match = match
        self.w: ChannelwiseWorkload = match.workload
        w = self.w
        self.data = anchor.operands[0]
        self.weights = anchor.operands[1] if w.operation == "multiply" else None
        self.epilogue = anchor.epilogue
        self.window = Window.of(w)
        self.pixels = min(decisions["pixels"], w.out_width)
        lanes = spec.float_lanes
        if w.operation == "maximum" and w.dtype in ("uint8", "int8"):
            lanes = spec.vector_bits // 8
        lanes = min(lanes, w.channels)
        whole = w.channels // lanes
        self.lanes = lanes
        self.vectors = min(decisions["vectors"], whole)
        self.strips = whole // self.vectors  # of `vectors` whole vectors each
        self.chunks = min(decisions["chunks"], self.strips)

    def body(self) -> Stmt:
        """The parallel loop over (output line, chunk of channels)."""

        def chunk_of_line(chunk: Expr, image: Expr, y: Expr) -> Stmt:
            return self.window.cover_line(
                self.pixels, lambda x, border: self._columns(chunk, image, y, x, border)
            )

        return line_tasks(self.match, self.chunks, chunk_of_line)

    def _columns(self, chunk: Expr, image: Expr, y: Expr, x: Expr, border: int | None) -> Stmt:
        """All channels of a chunk for one tile of pixels."""
        width = self.vectors * self.lanes
        per_chunk, more = divmod(self.strips, self.chunks)

        def strip(i: Expr) -> Stmt:
            return self._tile(image, y, x, i * width, self.vectors, self.lanes, border)

        if self.chunks == 1:
            strips = loops.serial("strip", self.strips, strip)
        else:
            first = chunk * per_chunk + tirx.min(chunk, index(more))
            count = per_chunk + (chunk < more).astype("int32") if more else per_chunk
            strips = loops.serial("strip", count, strip, start=first)
        rest: list[Stmt] = []
        channel = self.strips * width
        while channel < self.w.channels:
            lanes = min(self.lanes, self.w.channels - channel)
            rest.append(self._tile(image, y, x, index(channel), 1, lanes, border))
            channel += lanes
        if not rest:
            return strips
        tail = loops.sequence(rest)
        if self.chunks > 1:
            tail = tirx.IfThenElse(tirx.EQ(chunk, index(self.chunks - 1)), tail, None)
        return loops.sequence([strips, tail])

    def _tile(
        self,
        image: Expr,
        y: Expr,
        x: Expr,
        channel: Expr,
        vectors: int,
        lanes: int,
        border: int | None,
    ) -> Stmt:
        w, window = self.w, self.window
        # Integer products are summed in float32: with 8-bit operands the sums of fewer than 512
        # products are exact, and multiply-add is faster than 32-bit integer multiplication.
        exact = w.operation == "maximum" and w.dtype != "bfloat16"
        kind = w.dtype if exact else "float32"
        registers = loops.local_buffer("window", (self.pixels * vectors * lanes,), kind)

        def ramp(pixel: int, vector: int) -> Expr:
            return loops.ramp((pixel * vectors + vector) * lanes, lanes)

        def lanes_at(vector: int) -> Expr:
            return loops.ramp(channel + vector * lanes, lanes)

        initial = lowest(kind) if w.operation == "maximum" else tirx.const(0.0, "float32")
        clear = loops.sequence(
            tirx.BufferStore(registers, loops.splat(initial, lanes), [ramp(p, v)])
            for p in range(self.pixels)
            for v in range(vectors)
        )

        def wide(loaded: Expr) -> Expr:
            """`loaded` in the accumulators' dtype."""
            if str(loaded.ty.dtype) != vector_type(w.dtype, lanes) or kind == w.dtype:
                return loaded
            if w.dtype != "bfloat16":
                loaded = loaded.astype(vector_type("int32", lanes))
            return loaded.astype(vector_type(kind, lanes))

        def tap(kh: Expr, kw: int, pixel: int, vector: int, inside: bool) -> Stmt:
            if inside:
                row, column = window.input_row(y, kh), window.input_column(x + pixel, kw)
                value = wide(tirx.BufferLoad(self.data, [image, row, column, lanes_at(vector)]))
            else:
                value = loops.splat(tirx.const(w.pad_value, kind), lanes)
            register = tirx.BufferLoad(registers, [ramp(pixel, vector)])
            if w.operation == "maximum":
                # In this order what NaN costs is not on the way from one tap to the next.
                result = tirx.max(value, register)
            elif self.weights is not None:
                weight = wide(tirx.BufferLoad(self.weights, [kh, index(kw), lanes_at(vector)]))
                result = register + value * weight
            else:
                result = register + value
            return tirx.BufferStore(registers, result, [ramp(pixel, vector)])

        def valid(kw: int) -> list[int]:
            if border is None:
                return list(range(self.pixels))
            return window.valid_pixels(border, self.pixels, kw)

        def taps(kh: Expr, existing: Callable[[int], list[int]]) -> Stmt:
            return loops.sequence(
                tap(kh, kw, pixel, vector, pixel in existing(kw))
                for kw in range(w.kernel_width)
                for pixel in (range(self.pixels) if w.pad_value else existing(kw))
                for vector in range(vectors)
            )

        outside = (lambda kh: taps(kh, lambda _: [])) if w.pad_value else None

        def write(pixel: int, vector: int) -> Stmt:
            def lane(offset: Expr) -> Stmt:
                indices: list[Index] = [image, y, x + pixel, channel + vector * lanes + offset]
                register = tirx.BufferLoad(
                    registers, [index((pixel * vectors + vector) * lanes) + offset]
                )
                if w.operation == "average":
                    register = register * reciprocal_count(w, y, x + pixel)
                if w.dtype in ("uint8", "int8") and w.operation == "multiply":
                    register = register.astype("int32")
                return loops.store(
                    self.epilogue.output, indices, self.epilogue.value(register, indices)
                )

            return loops.vectorized("lane", lanes, lane)

        return loops.allocate(
            [registers],
            loops.sequence(
                [
                    clear,
                    window.kernel_rows(y, lambda kh: taps(kh, valid), outside),
                    *(write(p, v) for p in range(self.pixels) for v in range(vectors)),
                ]
            ),
        )
