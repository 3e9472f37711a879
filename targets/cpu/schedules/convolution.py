"""Direct convolution on NHWC data with packed weights; no im2col, no padded copy.

Interior tiles of an output row run without any test. Tiles that touch the left
or right border are peeled off and unrolled over the kernel's width, so that the
multiply-adds that would meet padding are simply absent; rows above and below
the image are skipped by the bounds of the loop over the kernel's height. Where
the width is no multiple of the tile, the last tile overlaps the one before it.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt, Var

from targets.cpu import loops
from targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from targets.cpu.loops import Index, index
from targets.cpu.operators.convolution import ConvolutionWorkload
from targets.cpu.schedules.register_tile import RegisterTile, choose_tile, tile_choices
from targets.cpu.template import Decisions, Match, Template
from targets.spec import TargetSpec


class ConvolutionTemplate(Template):
    """Convolution of any kernel, stride, dilation and group, float32.

    Decisions: `rows` (output pixels of a register tile), `vectors` (output channel vectors
    of a tile), `channels_outer` (1: each task keeps its weights and walks over the image;
    0: each task keeps its image rows and walks over the weights).
    """

    name = "convolution"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "convolution":
            return None
        workload = ConvolutionWorkload(**found)
        return Match(workload, workload.flops, compulsory_bytes(function))

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        w: ConvolutionWorkload = match.workload
        blocks = -(-w.out_channels // w.lanes)
        pixels = w.batch * w.out_height * w.out_width if w.is_pointwise else w.out_width
        rows, vectors = choose_tile(pixels, blocks, spec)
        weight_bytes = 4 * w.kernel_height * w.kernel_width * w.in_channels * blocks * w.lanes
        return {
            "rows": rows,
            "vectors": vectors,
            "channels_outer": int(weight_bytes * w.groups > spec.l2_bytes // 2),
        }

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        return {**tile_choices(spec), "channels_outer": (0, 1)}

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        if anchor is None:
            raise ValueError("what follows the convolution is not elementwise")
        return anchor.rebuild(_Emitter(match.workload, anchor, decisions).body())


class _Emitter:
    def __init__(self, workload: ConvolutionWorkload, anchor: Anchor, decisions: Decisions):
        self.w = workload
        self.data, self.weights = anchor.operands
        self.epilogue = anchor.epilogue
        self.blocks = -(-workload.out_channels // workload.lanes)
        self.vectors = min(decisions["vectors"], self.blocks)
        self.flat = workload.is_pointwise and workload.data_layout == "NHWC"
        pixels = (
            workload.batch * workload.out_height * workload.out_width
            if self.flat
            else workload.out_width
        )
        self.rows = min(decisions["rows"], pixels)
        self.pixels = pixels
        self.channels_outer = bool(decisions["channels_outer"])
        self.lines = -(-pixels // self.rows) if self.flat else workload.batch * workload.out_height

    def body(self) -> Stmt:
        """The parallel loop over (channel block, line) tasks."""
        channel_blocks = -(-self.blocks // self.vectors) * self.w.groups

        def task(p: Expr) -> Stmt:
            if self.channels_outer:
                block, line = p // self.lines, p % self.lines
            else:
                line, block = p // channel_blocks, p % channel_blocks
            return self._task(block, line)

        return loops.parallel("task", channel_blocks * self.lines, task)

    def _task(self, block: Expr, line: Expr) -> Stmt:
        per_group = -(-self.blocks // self.vectors)
        group, block = (block // per_group, block % per_group) if self.w.groups > 1 else (index(0), block)
        rest = self.blocks % self.vectors
        full = self._line(group, block, line, self.vectors)
        if rest == 0:
            return full
        last = self._line(group, block, line, rest)
        return tirx.IfThenElse(block < self.blocks // self.vectors, full, last)

    def _line(self, group: Expr, block: Expr, line: Expr, vectors: int) -> Stmt:
        """All tiles of one output line (or the one tile of a flat line)."""
        w = self.w
        if self.flat:
            start = line * self.rows
            if self.pixels % self.rows:
                start = tirx.min(start, index(self.pixels - self.rows))
            return self._tile(group, block, index(0), index(0), start, vectors, None)
        image, y = (line // w.out_height, line % w.out_height) if w.batch > 1 else (index(0), line)
        count = -(-self.pixels // self.rows)
        starts = [min(i * self.rows, self.pixels - self.rows) for i in range(count)]
        inside = [i for i in range(count) if self._is_interior(starts[i])]
        # The last tile may overlap: it is no member of the regular sequence.
        regular = [i for i in inside if starts[i] == i * self.rows]
        statements: list[Stmt] = []
        for i in range(count):
            if i in regular:
                if i == regular[0]:
                    statements.append(
                        loops.serial(
                            "tile",
                            len(regular),
                            lambda t: self._tile(
                                group, block, image, y, t * self.rows, vectors, None
                            ),
                            start=i,
                        )
                    )
            else:
                statements.append(
                    self._tile(group, block, image, y, index(starts[i]), vectors, starts[i])
                )
        return loops.sequence(statements)

    def _is_interior(self, start: int) -> bool:
        return all(
            len(self._valid_rows(start, kw)) == self.rows for kw in range(self.w.kernel_width)
        )

    def _valid_rows(self, start: int, kw: int) -> list[int]:
        """Rows of the tile at `start` whose input for kernel column `kw` lies in the image."""
        w = self.w
        return [
            r
            for r in range(self.rows)
            if 0 <= (start + r) * w.stride_width + kw * w.dilation_width - w.pad_left < w.in_width
        ]

    def _kernel_rows(self, y: Expr) -> tuple[Index, Index]:
        """First kernel row inside the image, and how many there are, for output line `y`."""
        w = self.w
        reach = (w.out_height - 1) * w.stride_height + (w.kernel_height - 1) * w.dilation_height
        if w.pad_top == 0 and reach < w.in_height:
            return 0, w.kernel_height
        top = y * w.stride_height - w.pad_top
        d = w.dilation_height
        first = tirx.max(index(0), tirx.floordiv(index(d - 1) - top, index(d)))
        end = tirx.min(
            index(w.kernel_height), tirx.floordiv(index(w.in_height - 1 + d) - top, index(d))
        )
        return first, tirx.max(end - first, index(0))

    def _tile(
        self,
        group: Expr,
        block: Expr,
        image: Expr,
        y: Expr,
        x: Expr,
        vectors: int,
        border: int | None,
    ) -> Stmt:
        """One register tile at pixel `x` of line `y`; `border` is `x` where it touches padding."""
        w = self.w
        tile = RegisterTile.make(self.rows, vectors, w.lanes)

        def step(kh: Expr, kw: Index, ic: Expr, rows: list[int] | None) -> Stmt:
            channel = group * w.in_channels + ic if w.groups > 1 else ic
            in_y = y * w.stride_height + kh * w.dilation_height - w.pad_top

            def value(row: int) -> Expr:
                if self.flat:
                    return self._flat_pixel(x + row, channel)
                in_x = (x + row) * w.stride_width + index(kw) * w.dilation_width - w.pad_left
                if w.data_layout == "NHWC":
                    return loops.load(self.data, image, in_y, in_x, channel)
                return loops.load(self.data, image, channel, in_y, in_x)

            def weights(vector: int) -> Expr:
                return tirx.BufferLoad(
                    self.weights,
                    [
                        group,
                        block * self.vectors + vector,
                        kh,
                        index(kw),
                        ic,
                        tirx.Ramp(index(0), index(1), w.lanes),
                    ],
                )

            return tile.multiply_add(value, weights, rows)

        def channels(kh: Expr, kw: Index, rows: list[int] | None) -> Stmt:
            return loops.serial("ic", w.in_channels, lambda ic: step(kh, kw, ic, rows))

        def columns(kh: Expr) -> Stmt:
            if border is None:
                return loops.serial("kw", w.kernel_width, lambda kw: channels(kh, kw, None))
            valid = {kw: self._valid_rows(border, kw) for kw in range(w.kernel_width)}
            return loops.sequence(channels(kh, kw, rows) for kw, rows in valid.items() if rows)

        first, count = (0, 1) if self.flat else self._kernel_rows(y)
        return loops.allocate(
            [tile.accumulators],
            loops.sequence(
                [
                    tile.clear(),
                    loops.serial("kh", count, columns, start=first),
                    self._write(tile, group, block, image, y, x),
                ]
            ),
        )

    def _flat_pixel(self, pixel: Expr, channel: Expr) -> Expr:
        return loops.load(self.data, *self._unflatten(pixel), channel)

    def _unflatten(self, pixel: Expr) -> list[Expr]:
        w = self.w
        if w.batch == 1 and w.out_height == 1:
            return [index(0), index(0), pixel]
        # One linear offset; the flattened index is the same, and no division is needed.
        return [index(0), index(0), pixel]

    def _write(
        self, tile: RegisterTile, group: Expr, block: Expr, image: Expr, y: Expr, x: Expr
    ) -> Stmt:
        w = self.w
        base = block * (self.vectors * w.lanes)

        def position(row: int, column: Expr) -> list[Index]:
            channel = base + column
            if w.groups > 1:
                channel = group * w.out_channels + channel
            if self.flat:
                return [*self._unflatten(x + row), channel]
            return [image, y, x + row, channel]

        spare = self.blocks * w.lanes - w.out_channels

        def store(partial: bool) -> Stmt:
            def lanes_of(vector: int) -> int:
                return w.lanes - spare if partial and vector == tile.vectors - 1 else w.lanes

            return tile.write_back(self.epilogue, position, lanes_of)

        if spare == 0:
            return store(partial=False)
        last = -(-self.blocks // self.vectors) - 1
        if last == 0:
            return store(partial=True)
        if tile.vectors != self.vectors:  # the narrower variant is used for the last block only
            return store(partial=True)
        if self.blocks % self.vectors:
            return store(partial=False)
        return tirx.IfThenElse(block == last, store(partial=True), store(partial=False))
