"""AMX: the tile instructions, as statements; the one place that emits them.

Eight tile registers hold up to 16 rows of 64 bytes; `configure` gives each its
shape. `dot` multiplies a tile of data by one of weights, in which the elements
of four bytes of one column lie side by side, and adds to a tile of 32-bit
accumulators (Intel 64 and IA-32 Architectures Software Developer's Manual,
volume 1, chapter 18, "Programming with Intel Advanced Matrix Extensions").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.spec import TargetSpec

TILES = 8
ROWS = 16
ROW_BYTES = 64
_CONFIGURATION_BYTES = 64


@dataclass(frozen=True)
class TileArithmetic:
    """What one dot instruction computes; `depth` reduction elements fill four bytes."""

    instruction: str
    feature: str
    depth: int


# By the name of the register arithmetic whose packed weights have the rows of a tile.
_ARITHMETICS = {
    "vnni": TileArithmetic("tdpbusd", "amx_int8", 4),
    "bfloat16": TileArithmetic("tdpbf16ps", "amx_bf16", 2),
}


def tile_arithmetic(name: str, spec: TargetSpec) -> TileArithmetic | None:
    """How tiles of the machine compute what the register arithmetic `name` does, if they can."""
    found = _ARITHMETICS.get(name)
    if found is None or not {"amx_tile", found.feature} <= spec.cpu_features:
        return None
    return found


def reduction_chunks(groups: int) -> int:
    """Into how many equal tiles `groups` neighbouring groups of four bytes are cut."""
    return next(n for n in range(-(-groups // ROWS), groups + 1) if groups % n == 0)


def whole_groups(groups: int, taps: int) -> int:
    """To how many groups of four bytes the channels of a pixel are filled up with zeros.

    The reduction runs over the groups of `taps` pixels. It takes the fewest tiles that way.
    """
    return min(range(groups, groups + ROWS), key=lambda g: (reduction_chunks(taps * g), g))


def whole_tile_steps(name: str, steps: int, taps: int, spec: TargetSpec) -> int:
    """`whole_groups` of the steps of the arithmetic `name`, where tiles compute it."""
    return steps if tile_arithmetic(name, spec) is None else whole_groups(steps, taps)


def configure(shapes: Sequence[tuple[int, int]]) -> Stmt:
    """Gives tile register `i` the shape `shapes[i]`: rows, and bytes of a row."""
    if len(shapes) > TILES:
        raise ValueError(f"{len(shapes)} tile registers, there are {TILES}")
    content = bytearray(_CONFIGURATION_BYTES)
    content[0] = 1  # the palette
    for i, (rows, row_bytes) in enumerate(shapes):
        content[16 + 2 * i] = row_bytes
        content[48 + i] = rows
    buffer = loops.local_buffer("tile_configuration", (_CONFIGURATION_BYTES,), "uint8")
    fill = [loops.store(buffer, [i], tirx.const(value, "uint8")) for i, value in enumerate(content)]
    return loops.allocate([buffer], loops.sequence([*fill, _emit("ldtilecfg", _address(buffer))]))


def release() -> Stmt:
    """Returns the tile registers to their initial state, so that nobody has to save them."""
    return _emit("tilerelease")


def zero(tile: int) -> Stmt:
    """All elements of a tile set to zero."""
    return _emit("tilezero", _number(tile))


def load(tile: int, first: Expr, stride: int) -> Stmt:
    """Rows of a tile from memory: `first` is a buffer read, rows are `stride` bytes apart."""
    return _emit("tileloadd64", _number(tile), tirx.address_of(first), tirx.const(stride, "int64"))


def store(tile: int, first: Expr, stride: int) -> Stmt:
    """Rows of a tile to memory: `first` is a buffer read, rows are `stride` bytes apart."""
    return _emit("tilestored64", _number(tile), tirx.address_of(first), tirx.const(stride, "int64"))


def dot(arithmetic: TileArithmetic, accumulators: int, data: int, weights: int) -> Stmt:
    """`accumulators += data * weights`"""
    return _emit(arithmetic.instruction, _number(accumulators), _number(data), _number(weights))


def _emit(name: str, *operands: Expr) -> Stmt:
    return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def _number(tile: int) -> Expr:
    return tirx.const(tile, "int8")


def _address(buffer: tirx.Var) -> Expr:
    return tirx.address_of(loops.load(buffer, 0))
