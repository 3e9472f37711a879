"""Direct convolution on NHWC data with packed weights: no im2col, no padded copy.

See `window` for how borders are met and `register_tile` for the arithmetic.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import arithmetic_named, sums_floats
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.schedules.decompression import (
    Decompression,
    Panel,
    Weights,
    panel_pays,
    registers_needed,
    shared_lines,
)
from tinsmith.targets.cpu.schedules.register_tile import (
    RegisterTile,
    choose_tile,
    fills_registers,
    tile_choices,
)
from tinsmith.targets.cpu.schedules.widening import widen
from tinsmith.targets.cpu.schedules.window import Window
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template

# So few input channels are unrolled: a loop over them would not pay for itself.
_FEW_CHANNELS = 4


class ConvolutionTemplate(Template):
    """Convolution of any kernel, stride, dilation and group, in any arithmetic.

    Decisions: `rows` (output pixels of a register tile), `vectors` (output channel vectors
    of a tile), `channels_outer` (1: each task keeps its weights and walks over the image;
    0: each task keeps its image rows and walks over the weights); where there are many weights,
    `prefetch` (1: while those of one channel tile are in use, the next are asked for); where
    they are compressed, `panels` (1: each task decompresses its weights once).
    """

    name = "convolution"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "convolution" or find_anchor(function) is None:
            return None
        workload = ConvolutionWorkload.from_json(dict(found))
        return Match(workload, workload.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return sums_floats(match.workload.arithmetic)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        w: ConvolutionWorkload = match.workload
        pixels = _pixels(w)
        # Unrolled channels need registers of their own for what the compiler moves ahead.
        most_rows = 8 if _unrolls_channels(w) else pixels
        arithmetic = arithmetic_named(w.arithmetic)

        def tile(form: CompressedForm | None) -> tuple[int, int]:
            registers = registers_needed(form)
            return choose_tile(min(pixels, most_rows), w.blocks, spec, arithmetic, registers)

        rows, vectors = tile(None)
        storage = {}
        if w.compressed is not None:
            lines = w.batch * w.out_height * w.out_width // pixels
            channel_tiles = -(-w.blocks // vectors) * w.groups
            passes = shared_lines(lines * -(-pixels // rows), channel_tiles, spec)
            storage["panels"] = int(panel_pays(w.compressed, passes, vectors, w.lanes, spec))
            if not storage["panels"]:
                rows, vectors = tile(w.compressed)
        weight_bytes = (
            4 * w.groups * w.kernel_height * w.kernel_width * w.in_channels * w.blocks * w.lanes
        )
        outer = int(weight_bytes > spec.l2_bytes // 2)
        if _can_prefetch(w, spec):
            storage["prefetch"] = outer and int(arithmetic.accumulator == "float32")
        return {"rows": rows, "vectors": vectors, "channels_outer": outer, **storage}

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        w: ConvolutionWorkload = match.workload
        storage = {} if w.compressed is None else {"panels": (0, 1)}
        if _can_prefetch(w, spec):
            storage["prefetch"] = (0, 1)
        tiles = tile_choices(_pixels(w), w.blocks, spec, arithmetic_named(w.arithmetic))
        return {**tiles, "channels_outer": (0, 1), **storage}

    def entries_first(self, match: Match, decisions: Decisions) -> Decisions:
        order = {"channels_outer": 0, "prefetch": 0}
        return {name: order.get(name, value) for name, value in decisions.items()}

    def worth_trying(self, match: Match, decisions: Decisions, spec: TargetSpec) -> bool:
        w: ConvolutionWorkload = match.workload
        if decisions.get("prefetch") and not decisions["channels_outer"]:
            return False
        form = None if decisions.get("panels") else w.compressed
        registers = registers_needed(form)
        return fills_registers(decisions, spec, arithmetic_named(w.arithmetic), registers)

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if anchor is None:
            raise ValueError("what follows the convolution is not elementwise")
        return anchor.rebuild(_Emitter(match, anchor, decisions, spec).body())


def _can_prefetch(w: ConvolutionWorkload, spec: TargetSpec) -> bool:
    """Whether the weights are read as they lie, and too many to stay near the processor."""
    steps = -(-w.in_channels // arithmetic_named(w.arithmetic).depth)
    packed_bytes = 4 * w.kernel_height * w.kernel_width * steps * w.blocks * w.lanes
    large = packed_bytes > spec.l2_bytes // 4
    return large and w.compressed is None and w.groups == 1 and not _unrolls_channels(w)


def _unrolls_channels(w: ConvolutionWorkload) -> bool:
    return w.in_channels <= _FEW_CHANNELS * arithmetic_named(w.arithmetic).depth


def _is_column(w: ConvolutionWorkload) -> bool:
    """Whether the image is one pixel wide, so that a line runs downwards."""
    if _is_flat(w):
        return False
    return w.in_width == w.out_width == w.kernel_width == 1 and w.pad_left == 0


def _laid_flat(w: ConvolutionWorkload) -> ConvolutionWorkload:
    """The same convolution with height and width exchanged."""
    return replace(
        w,
        in_height=w.in_width,
        in_width=w.in_height,
        out_height=w.out_width,
        out_width=w.out_height,
        kernel_height=w.kernel_width,
        kernel_width=w.kernel_height,
        stride_height=w.stride_width,
        stride_width=w.stride_height,
        dilation_height=w.dilation_width,
        dilation_width=w.dilation_height,
        pad_top=w.pad_left,
        pad_left=w.pad_top,
    )


def _is_flat(w: ConvolutionWorkload) -> bool:
    """Whether the image can be taken as one long line of pixels."""
    return w.is_pointwise and w.data_layout == "NHWC"


def _pixels(w: ConvolutionWorkload) -> int:
    """Of the line that is cut into tiles."""
    if _is_flat(w):
        return w.batch * w.out_height * w.out_width
    return max(w.out_width, w.out_height) if _is_column(w) else w.out_width


class _Emitter:
    def __init__(self, match: Match, anchor: Anchor, decisions: Decisions, spec: TargetSpec):
        self.match = match
        self.column = _is_column(match.workload)
        self.w: ConvolutionWorkload = _laid_flat(match.workload) if self.column else match.workload
        w = self.w
        self.arithmetic = arithmetic_named(w.arithmetic)
        self.steps = -(-w.in_channels // self.arithmetic.depth)
        self.spec = spec
        self.data, *self.weights = anchor.operands
        self.epilogue = anchor.epilogue
        self.window = Window.of(w)
        self.flat = _is_flat(w)
        self.pixels = w.batch * w.out_height * w.out_width if self.flat else w.out_width
        self.rows = min(decisions["rows"], self.pixels)
        self.lines = -(-self.pixels // self.rows) if self.flat else w.batch * w.out_height
        self.vectors = min(decisions["vectors"], w.blocks)
        self.tiles_of_group = -(-w.blocks // self.vectors)
        self.channels_outer = bool(decisions["channels_outer"])
        self.prefetches = bool(decisions.get("prefetch", 0)) and self.channels_outer
        self.panels = bool(decisions.get("panels", 0))

    def body(self) -> Stmt:
        """The parallel loop over (channel tile, line) tasks."""
        channel_tiles = self.tiles_of_group * self.w.groups
        lines = shared_lines(self.lines, channel_tiles, self.spec) if self.panels else 1
        chunks = -(-self.lines // lines)

        def task(p: Expr) -> Stmt:
            if self.channels_outer or self.panels:
                return self._task(p // chunks, p % chunks * lines, lines)
            return self._task(p % channel_tiles, p // channel_tiles)

        tasks = channel_tiles * chunks
        if self.arithmetic.widened is None:
            return loops.tasks(tasks, self.match.flops, self.match.bytes, task)
        self.data, conversion = widen(self.data, self.arithmetic.widened, self.spec)
        products = loops.tasks(tasks, self.match.flops, self.match.bytes, task)
        return loops.allocate([self.data], loops.sequence([conversion, products]))

    def _task(self, channel_tile: Expr, first: Expr, lines: int = 1) -> Stmt:
        """The lines from `first` of one channel tile."""
        group, column = index(0), channel_tile
        if self.w.groups > 1:
            group, column = channel_tile // self.tiles_of_group, channel_tile % self.tiles_of_group
        rest = self.w.blocks % self.vectors
        count: Index = lines
        if self.lines % lines:
            count = tirx.min(index(lines), index(self.lines) - first)

        def of(vectors: int) -> Stmt:
            if not self.panels or self.w.compressed is None:
                return self._line(group, column, first, vectors)
            panel = Panel.make(self.w.compressed, vectors, self.w.lanes)
            fill = panel.fill(
                self._decompression(self.w.compressed, vectors),
                lambda v: [group, column * self.vectors + v],
                [int(extent) for extent in self.weights[0].ty.shape[2:4]],
            )
            walk = loops.serial(
                "line",
                count,
                lambda line: self._line(group, column, line, vectors, panel),
                start=first,
            )
            return loops.allocate([panel.buffer], loops.sequence([fill, walk]))

        full = of(self.vectors)
        if rest == 0:
            return full
        narrow = of(rest)
        return tirx.IfThenElse(column < self.w.blocks // self.vectors, full, narrow)

    def _decompression(self, form: CompressedForm, vectors: int) -> Decompression:
        return Decompression.make(form, self.weights, vectors, self.w.lanes, self.spec)

    def _line(
        self, group: Expr, column: Expr, line: Expr, vectors: int, panel: Panel | None = None
    ) -> Stmt:
        """All tiles of one output line (the one tile of a flat line)."""
        w = self.w
        if self.flat:
            start = line * self.rows
            if self.pixels % self.rows:
                start = tirx.min(start, index(self.pixels - self.rows))
            return self._tile(group, column, line, index(0), index(0), start, vectors, None, panel)
        image, y = (line // w.out_height, line % w.out_height) if w.batch > 1 else (index(0), line)
        return self.window.cover_line(
            self.rows,
            lambda x, border: self._tile(group, column, line, image, y, x, vectors, border, panel),
        )

    def _tile(
        self,
        group: Expr,
        column: Expr,
        line: Expr,
        image: Expr,
        y: Expr,
        x: Expr,
        vectors: int,
        border: int | None,
        panel: Panel | None,
    ) -> Stmt:
        w, window = self.w, self.window
        depth = self.arithmetic.depth
        tile = RegisterTile.make(self.rows, vectors, w.lanes, self.arithmetic)

        compressed = None
        if w.compressed is not None and panel is None:
            compressed = self._decompression(w.compressed, vectors)

        def tap_of(kh: Expr, kw: Index) -> list[Expr]:
            return [index(kw), kh] if self.column else [kh, index(kw)]

        def step(
            kh: Expr, kw: Index, ic: Expr, rows: list[int] | None, stored: Weights | None = None
        ) -> Stmt:
            first = ic * depth
            if w.groups > 1:
                first = group * w.in_channels + first
            channel = loops.ramp(first, depth)

            def value(row: int) -> Expr:
                if rows is not None and row not in rows:
                    return loops.splat(tirx.const(w.pad_value, self.data.ty.dtype), depth)
                if self.flat:
                    # Pixels lie one behind the other, whatever line and image they belong to.
                    return loops.load(self.data, 0, 0, x + row, channel)
                in_y, in_x = window.input_row(y, kh), window.input_column(x + row, kw)
                if self.column:
                    in_y, in_x = in_x, in_y
                if w.data_layout == "NHWC":
                    return loops.load(self.data, image, in_y, in_x, channel)
                return loops.load(self.data, image, channel, in_y, in_x)

            def weights(vector: int) -> Expr:
                if panel is not None:
                    return panel.load(vector, kh * w.kernel_width + index(kw), ic)
                block = column * self.vectors + vector
                lanes = loops.ramp(0, w.lanes * depth)
                return tirx.BufferLoad(self.weights[0], [group, block, *tap_of(kh, kw), ic, lanes])

            wanted = None if w.pad_value else rows
            return tile.multiply_add(value, stored or weights, wanted)

        def ahead(kh: Expr, kw: Index, ic: Expr, vector: int) -> Stmt:
            """Asks for the weights at step `ic` of the next channel tile."""
            block = tirx.min((column + 1) * self.vectors + vector, index(w.blocks - 1))
            place = tirx.min(ic, index(self.steps - 1))
            return loops.prefetch(
                loops.load(self.weights[0], group, block, *tap_of(kh, kw), place, 0)
            )

        def prefetching(kh: Expr, kw: Index, rows: list[int] | None) -> Stmt:
            """The channels of a tap, and requests for a part of those of the next channel tile.

            Each of the tiles of the image asks for an equal part, so that requests are few at
            any time.
            """
            of_line = -(-self.pixels // self.rows)
            tiles = self.lines if self.flat else self.lines * of_line
            number = line if self.flat else line * of_line + (x + (self.rows - 1)) // self.rows
            parts = -(-self.steps // tiles)
            length = self.steps // parts

            def one(part: Expr) -> Stmt:
                asked = (ahead(kh, kw, number * parts + part, v) for v in range(vectors))
                products = loops.serial(
                    "ic", length, lambda ic: step(kh, kw, ic, rows), start=part * length
                )
                return loops.sequence([*asked, products])

            rest = self.steps - parts * length
            last = loops.serial("ic", rest, lambda ic: step(kh, kw, ic, rows), start=parts * length)
            return loops.sequence([loops.serial("part", parts, one), last if rest else None])

        def channels(kh: Expr, kw: Index, rows: list[int] | None) -> Stmt:
            unrolled = rows is None and _unrolls_channels(w)
            if compressed is not None:
                return compressed.channels(
                    lambda v: [group, column * self.vectors + v],
                    tap_of(kh, kw),
                    kh * w.kernel_width + index(kw),
                    lambda ic, stored: step(kh, kw, ic, rows, stored),
                    unrolled,
                )
            if self.prefetches:
                return prefetching(kh, kw, rows)
            if unrolled:
                return loops.sequence(step(kh, kw, index(c), None) for c in range(self.steps))
            return loops.serial("ic", self.steps, lambda ic: step(kh, kw, ic, rows))

        def columns(kh: Expr) -> Stmt:
            if border is None:
                return loops.serial("kw", w.kernel_width, lambda kw: channels(kh, kw, None))
            valid = {kw: window.valid_pixels(border, self.rows, kw) for kw in range(w.kernel_width)}
            return loops.sequence(
                channels(kh, kw, rows) for kw, rows in valid.items() if rows or w.pad_value
            )

        def outside(kh: Expr) -> Stmt:
            return loops.serial("kw", w.kernel_width, lambda kw: channels(kh, kw, []))

        if self.flat:
            taps = columns(index(0))
        else:
            taps = window.kernel_rows(y, columns, outside if w.pad_value else None)
        return loops.allocate(
            [tile.accumulators, *(compressed.registers if compressed else ())],
            loops.sequence(
                [
                    tile.clear(),
                    taps,
                    tile.in_rows(),
                    self._write(tile, group, column, image, y, x),
                ]
            ),
        )

    def _write(
        self, tile: RegisterTile, group: Expr, column: Expr, image: Expr, y: Expr, x: Expr
    ) -> Stmt:
        w = self.w

        def position(row: int, lane: Expr) -> list[Index]:
            channel = group * w.out_channels + column * (self.vectors * w.lanes) + lane
            if not self.flat:
                place = [x + row, y] if self.column else [y, x + row]
                return [image, *place, channel]
            if w.batch == w.out_height == 1:
                return [0, 0, x + row, channel]
            # The simplifier folds these divisions away wherever the buffer is contiguous.
            pixel = x + row
            line = pixel // w.out_width
            return [line // w.out_height, line % w.out_height, pixel % w.out_width, channel]

        is_last: Expr | bool = tile.vectors != self.vectors
        if w.blocks % self.vectors == 0:
            is_last = self.tiles_of_group == 1 or tirx.EQ(column, index(self.tiles_of_group - 1))
        spare = w.blocks * w.lanes - w.out_channels
        whole = w.groups == 1 and spare == 0 and tile.vectors == w.blocks
        return tile.write_back(
            self.epilogue,
            position,
            spare,
            is_last,
            spec=self.spec,
            contiguous=whole and not self.column,
        )
