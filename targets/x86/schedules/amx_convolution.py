"""Convolution by AMX tiles: every tap is a matrix product over one long line of pixels.

Pixel `p` of the line is output pixel `(p // pitch, p % pitch)`, where `pitch` is
the width of a padded input line in steps of the stride; the few pixels behind
the end of an output line are computed and not stored. So the input of `p` for
any tap lies `stride_width` pixels behind that of `p - 1`, also from one line to
the next, and a tile is full however narrow the image is.

For that an image with padding or with a vertical stride is copied first: with
the padding around it, and lines that are `stride_height` apart next to each other
(the copy has `stride_height` planes of lines). The copy is read once for every
tap and column, and written once.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Anchor, compulsory_bytes, find_anchor, workload_of
from tinsmith.targets.cpu.arithmetic import arithmetic_named, sums_floats
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template
from tinsmith.targets.x86.schedules.amx_tiles import (
    TileEmitter,
    TileOperands,
    TileProduct,
    decision_space,
    default_decisions,
)
from tinsmith.targets.x86.tile_instructions import ROW_BYTES, tile_arithmetic


class AmxConvolutionTemplate(Template):
    """Convolution of int8 or bfloat16 in NHWC; decisions: see `amx_tiles`."""

    name = "convolution-amx"

    def match(self, function: PrimFunc, spec: TargetSpec) -> Match | None:
        found = workload_of(function)
        if found is None or found["kind"] != "convolution" or find_anchor(function) is None:
            return None
        w = ConvolutionWorkload.from_json(dict(found))
        if w.data_layout != "NHWC" or w.lanes * 4 != ROW_BYTES or w.compressed is not None:
            return None
        if tile_arithmetic(w.arithmetic, spec) is None or not _product(w).pays:
            return None
        return Match(w, w.flops, compulsory_bytes(function))

    def sums_products(self, match: Match) -> bool:
        return sums_floats(match.workload.arithmetic)

    def default(self, match: Match, spec: TargetSpec) -> dict[str, int]:
        return default_decisions(_product(match.workload), spec)

    def space(self, match: Match, spec: TargetSpec) -> dict[str, tuple[int, ...]]:
        return decision_space()

    def apply(
        self, function: PrimFunc, match: Match, decisions: Decisions, spec: TargetSpec
    ) -> PrimFunc:
        anchor = find_anchor(function)
        w: ConvolutionWorkload = match.workload
        tiles = tile_arithmetic(w.arithmetic, spec)
        if anchor is None or tiles is None:
            raise ValueError("not a convolution that AMX computes")
        operands = _Operands(w, anchor)
        emitter = TileEmitter(
            _product(w),
            operands,
            arithmetic_named(w.arithmetic),
            tiles,
            anchor.epilogue,
            decisions,
        )
        return anchor.rebuild(operands.with_copy(emitter.body(match)))


class _Lines:
    """The lines of pixels that a convolution runs over; extents in pixels."""

    def __init__(self, w: ConvolutionWorkload):
        reach = (w.out_width - 1) * w.stride_width + (w.kernel_width - 1) * w.dilation_width + 1
        self.width = -(-reach // w.stride_width) * w.stride_width
        self.pitch = self.width // w.stride_width
        self.planes = w.stride_height if w.kernel_height > 1 else 1
        self.height = w.out_height + (w.kernel_height - 1) * w.dilation_height // w.stride_height
        self.copied = (
            w.pad_top > 0
            or w.pad_left > 0
            or w.stride_height > 1
            or self.width != w.in_width
            or self.height > w.in_height
        )
        if not self.copied:
            self.height = w.in_height
        # Nothing lies between the output pixels of neighbouring lines and images.
        self.joined = self.pitch == w.out_width and self.planes * self.height == w.out_height


def _product(w: ConvolutionWorkload) -> TileProduct:
    lines = _Lines(w)
    pixels = (w.out_height - 1) * lines.pitch + w.out_width
    # The pixels under a kernel row are neighbours in memory: one run of the reduction.
    folded = w.groups == 1 and w.dilation_width == 1
    steps = w.in_channels // arithmetic_named(w.arithmetic).depth
    return TileProduct(
        images=1 if lines.joined else w.batch,
        positions=w.batch * pixels if lines.joined else pixels,
        groups=w.groups,
        blocks=w.blocks,
        spare=w.blocks * w.lanes - w.out_channels,
        taps=(w.kernel_height, 1 if folded else w.kernel_width),
        run=steps * w.kernel_width if folded else steps,
    )


class _Operands(TileOperands):
    def __init__(self, w: ConvolutionWorkload, anchor: Anchor):
        self.w = w
        self.lines = _Lines(w)
        self.input, self.packed = anchor.operands
        self.depth = arithmetic_named(w.arithmetic).depth
        self.channels = w.groups * w.in_channels
        self.pitch = w.stride_width * self.channels * 4 // self.depth
        self.copy: Var | None = None
        if self.lines.copied:
            lines = self.lines
            shape = (w.batch, lines.planes, lines.height, lines.width * self.channels)
            self.copy = tirx.decl_buffer(shape, self._stored, "padded")

    @property
    def _stored(self) -> str:
        """The dtype of the copy: TVM would make an intermediate bfloat16 buffer one of float32."""
        data_type = str(self.input.ty.dtype)
        return "uint16" if data_type == "bfloat16" else data_type

    def data(
        self, group: Expr, image: Expr, position: Expr, tap: tuple[Expr, Expr], element: Expr
    ) -> Expr:
        w, (kh, kw) = self.w, tap
        row = kh * w.dilation_height
        pixel = position * w.stride_width + kw * w.dilation_width
        offset = pixel * self.channels + element
        if w.groups > 1:
            offset = group * w.in_channels + offset
        if self.copy is None:
            return loops.load(self.input, image, row, 0, offset)
        return loops.load(self.copy, image, row % w.stride_height, row // w.stride_height, offset)

    def weights(self, group: Expr, block: Expr, tap: tuple[Expr, Expr], row: Expr) -> Expr:
        # A run over several kernel columns goes on in the packed weights of the next.
        return loops.load(self.packed, group, block, *tap, row, 0)

    def inside(self, position: Expr) -> Expr | None:
        if self.lines.pitch == self.w.out_width:
            return None
        return position % self.lines.pitch < self.w.out_width

    def place(self, group: Expr, image: Expr, position: Expr, column: Expr) -> list[Index]:
        w = self.w
        line, x = position // self.lines.pitch, position % self.lines.pitch
        if self.lines.joined and w.batch > 1:
            image, line = line // w.out_height, line % w.out_height
        return [image, line, x, group * w.out_channels + column]

    def with_copy(self, body: Stmt) -> Stmt:
        """`body`, and before it the copy of the input if there is one."""
        copy = self.copy
        if copy is None:
            return body
        w, lines = self.w, self.lines
        before = w.pad_left * self.channels
        inner = min(w.in_width, lines.width - w.pad_left) * self.channels
        after = lines.width * self.channels - before - inner
        border = tirx.const(w.pad_value, self._stored)
        lanes = ROW_BYTES * self.depth // 4

        def line(number: Expr) -> Stmt:
            image, rest = number // (lines.planes * lines.height), number
            if w.batch > 1:
                rest = number % (lines.planes * lines.height)
            else:
                image = index(0)
            plane, row = rest // lines.height, rest % lines.height
            source = row * w.stride_height + plane - w.pad_top

            def surround(start: int, extent: int) -> Stmt | None:
                return loops.vectors(extent, lanes, lambda i: put(start + i, border))

            def put(element: Expr, value: Expr) -> Stmt:
                return loops.store(copy, [image, plane, row, element], value)

            def element(i: Expr) -> Stmt:
                value = loops.load(self.input, image, source, 0, i)
                if self._stored != str(self.input.ty.dtype):
                    value = tirx.reinterpret(self._stored, value)
                return put(i + before, value)

            inside = loops.sequence(
                [
                    surround(0, before),
                    loops.vectors(inner, lanes, element),
                    surround(before + inner, after),
                ]
            )
            outside = surround(0, lines.width * self.channels)
            return tirx.IfThenElse(tirx.all(source >= 0, source < w.in_height), inside, outside)

        count = w.batch * lines.planes * lines.height
        traffic = 2 * math.prod(int(e) for e in copy.ty.shape)
        return loops.allocate([copy], loops.sequence([loops.tasks(count, 0, traffic, line), body]))
