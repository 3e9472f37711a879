"""Compressed weights turned into float vectors, for the rows of one tile or of many.

A vector of codes is loaded, widened and turned into levels in registers: by conversion where
the levels are even, else by a look-up in a table that a register or two hold. The levels times
the group's scales are the weights. A tile of few rows takes them from the registers, step by
step (`Decompression`): it reads an eighth of the bytes. Where many tiles follow, they read a
panel that a task decompresses once (`Panel`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.arithmetic import vector
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm
from tinsmith.targets.spec import TargetSpec

# The operands by their dtypes: codes, scales, levels.
_ORDER = ("int8", "uint8", "float16", "float32")

# So many tiles that read the same weights pay for writing them to memory first.
_PASSES = 3

# With fewer tasks for each core, panels are decompressed more than once.
_TASKS_OF_CORE = 2

# The weights of one step: the vector of a number.
Weights = Callable[[int], Expr]


def registers_needed(form: CompressedForm | None) -> tuple[int, int]:
    """Registers that a tile needs besides accumulators: in all, and for each vector."""
    if form is None:
        return 1, 1
    return (1 if form.bits == 8 else 2), 3 if form.offsets else 2


def panel_pays(
    form: CompressedForm, passes: int, vectors: int, lanes: int, spec: TargetSpec
) -> bool:
    """Whether to decompress a panel for `passes` tiles, and not in each tile's registers."""
    size = 4 * form.taps * form.channels * vectors * lanes
    return passes >= _PASSES and size <= spec.l2_bytes


@dataclass(frozen=True)
class Decompression:
    """Reads the weights of a tile of `vectors` vectors of `lanes` output channels.

    `operands` are those of `stored_operands`; `weights`, `scales` and `offsets` are buffers
    for registers, to be allocated around the tile.
    """

    form: CompressedForm
    operands: tuple[Var, ...]
    vectors: int
    lanes: int
    spec: TargetSpec
    weights: Var
    scales: Var
    offsets: Var

    @classmethod
    def make(
        cls,
        form: CompressedForm,
        operands: Sequence[Var],
        vectors: int,
        lanes: int,
        spec: TargetSpec,
    ) -> Decompression:
        """A reader with registers of its own; the operands may come in any order."""
        names = ("weight", "scale", "offset")
        registers = [loops.local_buffer(name, (vectors * lanes,), "float32") for name in names]
        ordered = sorted(operands, key=lambda buffer: _ORDER.index(str(buffer.ty.dtype)))
        return cls(form, tuple(ordered), vectors, lanes, spec, *registers)

    @property
    def registers(self) -> tuple[Var, ...]:
        """The buffers to allocate."""
        held = (self.weights, self.scales)
        return (*held, self.offsets) if self.form.offsets else held

    def channels(
        self,
        lead: Callable[[int], list[Index]],
        position: Sequence[Index],
        tap: Index,
        step: Callable[[Expr, Weights], Stmt],
        unrolled: bool = False,
    ) -> Stmt:
        """`step(channel, weights)` for all input channels of one kernel position.

        `lead(vector)` are the indices of a vector's packed block, `position` those of the kernel
        position, which is the one of number `tap`.
        """
        grouping, size = self.form.grouping, self.form.group_channels
        whole, rest = divmod(grouping.channels, size)

        def group(number: Expr, count: int) -> Stmt:
            first = grouping.group_of(index(tap), number * size)
            return loops.sequence(
                [
                    self._load_scales(lead, position, first),
                    self._steps(number * size, count, lead, position, step, unrolled),
                ]
            )

        return loops.sequence(
            [
                loops.serial("group", whole, lambda g: group(g, size)) if whole else None,
                group(index(whole), rest) if rest else None,
            ]
        )

    def _load_scales(
        self, lead: Callable[[int], list[Index]], position: Sequence[Index], group: Expr
    ) -> Stmt:
        zeros = [index(0)] * len(position)

        def load(registers: Var, number: Expr) -> list[Stmt]:
            return [
                tirx.BufferStore(
                    registers,
                    tirx.BufferLoad(
                        self.operands[1],
                        [*map(index, lead(v)), *zeros, number, loops.ramp(0, self.lanes)],
                    ).astype(vector("float32", self.lanes)),
                    [self._slot(v)],
                )
                for v in range(self.vectors)
            ]

        loads = load(self.scales, group)
        if self.form.offsets:
            loads += load(self.offsets, group + self.form.grouping.count)
        return loops.sequence(loads)

    def _steps(
        self,
        first: Expr,
        count: int,
        lead: Callable[[int], list[Index]],
        position: Sequence[Index],
        step: Callable[[Expr, Weights], Stmt],
        unrolled: bool,
    ) -> Stmt:
        """The steps of `count` channels from `first`, which begins a byte."""
        together = self.form.steps

        def one(byte: Expr, part: int) -> Stmt:
            stores = [
                tirx.BufferStore(
                    self.weights,
                    self._weight([*map(index, lead(v)), *map(index, position), byte], part, v),
                    [self._slot(v)],
                )
                for v in range(self.vectors)
            ]
            return loops.sequence([*stores, step(byte * together + part, self._register)])

        def several(offset: Expr, parts: int) -> Stmt:
            byte = tirx.floordiv(first, together) + offset
            return loops.sequence(one(byte, part) for part in range(parts))

        whole, rest = divmod(count, together)
        if unrolled:
            body = loops.sequence(several(index(i), together) for i in range(whole))
        else:
            body = loops.serial("byte", whole, lambda b: several(b, together))
        return loops.sequence(
            [body if whole else None, several(index(whole), rest) if rest else None]
        )

    def _slot(self, number: int) -> Expr:
        return loops.ramp(number * self.lanes, self.lanes)

    def _register(self, number: int) -> Expr:
        return tirx.BufferLoad(self.weights, [self._slot(number)])

    def _weight(self, place: list[Expr], part: int, number: int) -> Expr:
        """Level times scale of step `part` of a byte vector."""
        stored = tirx.BufferLoad(self.operands[0], [*place, loops.ramp(0, self.lanes)])
        scale = tirx.BufferLoad(self.scales, [self._slot(number)])
        wide = stored.astype(vector("int32", self.lanes))
        if self.form.bits == 4:
            value = self._level(wide if part == 0 else wide >> self._splat(4))
        else:
            value = wide.astype(vector("float32", self.lanes))
        if self.form.offsets:
            value = value - tirx.BufferLoad(self.offsets, [self._slot(number)])
        return value * scale

    def _level(self, code: Expr) -> Expr:
        """The levels of codes in the low nibbles of a vector of int32."""
        on_x86 = self.spec.architecture == "x86_64"
        one_look = on_x86 and self.lanes == 16
        if not self.form.table or (self.form.even and not one_look):
            whole = (code & self._splat(15)) - self._splat(8)
            return whole.astype(vector("float32", self.lanes))
        levels = self.operands[2]
        if one_look:
            # Looks at the low four bits only.
            return tirx.call_llvm_pure_intrin(
                "float32x16",
                "llvm.x86.avx512.permvar.sf.512",
                tirx.BufferLoad(levels, [loops.ramp(0, 16)]),
                code,
            )
        if on_x86 and self.lanes == 8:
            # The low three bits choose in each half of the table, the fourth chooses the half.
            low, high = (
                tirx.call_llvm_pure_intrin(
                    "float32x8",
                    "llvm.x86.avx2.permps",
                    tirx.BufferLoad(levels, [loops.ramp(start, 8)]),
                    code,
                )
                for start in (0, 8)
            )
            return tirx.Select((code & self._splat(8)) > self._splat(0), high, low)
        return tirx.BufferLoad(levels, [code & self._splat(15)])

    def _splat(self, number: int) -> Expr:
        return loops.splat(tirx.const(number, "int32"), self.lanes)


@dataclass(frozen=True)
class Panel:
    """The weights of a tile's vectors as floats in memory: decompressed once, read by many rows.

    `buffer` is `[vectors, taps * channels, lanes]`, to be allocated around a task.
    """

    form: CompressedForm
    lanes: int
    buffer: Var

    @classmethod
    def make(cls, form: CompressedForm, vectors: int, lanes: int) -> Panel:
        """A panel with memory of its own."""
        shape = (vectors, form.taps * form.channels, lanes)
        return cls(form, lanes, tirx.decl_buffer(shape, "float32", "panel"))

    def fill(
        self,
        source: Decompression,
        lead: Callable[[int], list[Index]],
        kernel: Sequence[int] = (),
    ) -> Stmt:
        """Decompress all steps; `kernel` are the extents of the kernel as the codes have them."""

        def tap(*position: Expr) -> Stmt:
            number = index(0)
            for place, extent in zip(position, kernel, strict=True):
                number = number * extent + place

            def step(channel: Expr, weights: Weights) -> Stmt:
                return loops.sequence(
                    tirx.BufferStore(self.buffer, weights(v), self._place(v, number, channel))
                    for v in range(source.vectors)
                )

            return source.channels(lead, position, number, step)

        def loop(position: tuple[Expr, ...]) -> Stmt:
            if len(position) == len(kernel):
                return tap(*position)
            extent = kernel[len(position)]
            return loops.serial("tap", extent, lambda place: loop((*position, place)))

        return loops.allocate(source.registers, loop(()))

    def load(self, vector: int, tap: Index, channel: Index) -> Expr:
        """The weights of one step."""
        return tirx.BufferLoad(self.buffer, self._place(vector, tap, channel))

    def _place(self, vector: int, tap: Index, channel: Index) -> list[Expr]:
        step = index(tap) * self.form.channels + index(channel)
        return [index(vector), step, loops.ramp(0, self.lanes)]


def shared_lines(lines: int, tiles: int, spec: TargetSpec) -> int:
    """How many of `lines` a task computes with one panel, where there are `tiles` panels.

    All of them, unless that leaves too few tasks for the cores.
    """
    chunks = min(lines, max(1, -(-_TASKS_OF_CORE * spec.cores // tiles)))
    return -(-lines // chunks)
