"""Winograd's products with weights that the kernel transforms itself, because they are halves.

    for each share of the input channels:
        transform their weights, for one group of output channel vectors, into a scratch buffer
        for each position, each block of tiles: products += patches x transformed weights

The scratch buffer stays in the L2 cache. With few tiles reading transforms from memory, eight
times the bytes of float16 weights, would take longer than to make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.anchor import Epilogue
from tinsmith.targets.cpu.arithmetic import Float32, vector
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload
from tinsmith.targets.cpu.schedules.both_axes import transform_both_axes
from tinsmith.targets.cpu.schedules.register_tile import RegisterTile
from tinsmith.targets.cpu.winograd_matrices import winograd_matrices
from tinsmith.targets.spec import TargetSpec

# Share of the L2 cache for transformed weights, and how many input channels they have at least.
_SHARE_OF_CACHE = 2
_FEWEST_TOGETHER = 8


@dataclass(frozen=True)
class ProductSize:
    """Tiles of a task, extents of the register tile, and the pitch of positions in the patches."""

    tiles: int
    rows: int
    vectors: int
    pitch: int


@dataclass(frozen=True)
class TapProducts:
    """Writes `products[tile, position, output channel]` of a group of output channel vectors.

    `patches` are the transformed inputs, flat: `[position][tile][input channel]`; `transformed`
    is scratch for `[position][input channel of a share][output channel]`, to be allocated.
    """

    work: WinogradWorkload
    size: ProductSize
    weights: Var
    patches: Var
    products: Var
    transformed: Var
    together: int  # input channels of a share
    pitch: int  # of positions in `transformed`

    @classmethod
    def make(
        cls,
        work: WinogradWorkload,
        size: ProductSize,
        weights: Var,
        patches: Var,
        products: Var,
        spec: TargetSpec,
    ) -> TapProducts:
        """With scratch of a size that suits the cache, and shares of equal size."""
        w, positions = work.convolution, work.patch**2
        width = size.vectors * w.lanes
        most = spec.l2_bytes // _SHARE_OF_CACHE // (4 * positions * width)
        shares = -(-w.in_channels // max(_FEWEST_TOGETHER, most))
        together = -(-w.in_channels // shares)
        # Without the additional vector, the positions would share cache sets.
        pitch = together * width + spec.float_lanes
        transformed = tirx.decl_buffer((positions * pitch,), "float32", "transformed")
        return cls(work, size, weights, patches, products, transformed, together, pitch)

    @property
    def _width(self) -> int:
        return self.size.vectors * self.work.convolution.lanes

    @property
    def _adds(self) -> bool:
        """Whether there are several shares, whose products are added up."""
        return self.together < self.work.convolution.in_channels

    def multiply(self, group: Expr, vectors: int) -> Stmt:
        """All products of the first `vectors` output channel vectors of `group`."""
        whole, rest = divmod(self.work.convolution.in_channels, self.together)
        tiles = loops.serial("tile", self.size.tiles, self._clear)
        return loops.sequence(
            [
                tiles if self._adds else None,
                loops.serial("share", whole, lambda s: self._share(group, vectors, s)),
                self._share(group, vectors, index(whole), rest) if rest else None,
            ]
        )

    def _clear(self, tile: Expr) -> Stmt:
        zero = loops.splat(tirx.const(0.0, "float32"), self._width)
        channels = loops.ramp(0, self._width)
        return loops.serial(
            "position",
            self.work.patch**2,
            lambda p: tirx.BufferStore(self.products, zero, [tile, p, channels]),
        )

    def _share(self, group: Expr, vectors: int, number: Expr, channels: int | None = None) -> Stmt:
        first, count = number * self.together, channels or self.together

        def weights(slot: Expr) -> Stmt:
            return loops.serial(
                "vector",
                vectors,
                lambda v: self._transform(group * self.size.vectors + v, first + slot, slot, v),
            )

        full, left = divmod(self.size.tiles, self.size.rows)

        def position(p: Expr) -> Stmt:
            # No block may overlap another: its products would be added twice.
            def block(start: Expr, rows: int) -> Stmt:
                return self._block(p, start, RowTile(rows, vectors), first, count)

            blocks = loops.serial(
                "block", full, lambda b: block(b * self.size.rows, self.size.rows)
            )
            last = block(index(full * self.size.rows), left) if left else None
            return loops.sequence([blocks, last])

        return loops.sequence(
            [
                loops.serial("slot", count, weights),
                loops.serial("position", self.work.patch**2, position),
            ]
        )

    def _transform(self, block: Expr, channel: Expr, slot: Expr, number: Expr) -> Stmt:
        """`G g G^T` of one input channel and one vector of output channels."""
        lanes, n = self.work.convolution.lanes, self.work.patch

        def source(i: int, j: int) -> Expr:
            taps = loops.ramp((3 * i + j) * lanes, lanes)
            stored = tirx.BufferLoad(self.weights, [block, channel, taps])
            return stored.astype(vector("float32", lanes))

        def sink(i: int, j: int, value: Expr) -> Stmt:
            first = (i * n + j) * self.pitch + slot * self._width + number * lanes
            return tirx.BufferStore(self.transformed, value, [loops.ramp(first, lanes)])

        factors = winograd_matrices(self.work.tile).weight_factors
        return transform_both_axes(factors, lanes, source, sink)

    def _block(
        self, position: Expr, start: Expr, extents: RowTile, first: Expr, channels: int
    ) -> Stmt:
        """The products of the tiles from `start`, for the input channels from `first`."""
        w = self.work.convolution
        tile = RegisterTile.make(extents.rows, extents.vectors, w.lanes, Float32())

        def step(ic: Expr) -> Stmt:
            place = position * self.size.pitch + first + ic
            slot = position * self.pitch + ic * self._width
            return tile.multiply_add(
                lambda r: loops.load(self.patches, place + (start + r) * w.in_channels),
                lambda v: tirx.BufferLoad(
                    self.transformed, [loops.ramp(slot + v * w.lanes, w.lanes)]
                ),
            )

        def total(value: Expr, indices: Sequence[Index]) -> Expr:
            return value + loops.load(self.products, *indices) if self._adds else value

        return loops.allocate(
            [tile.accumulators],
            loops.sequence(
                [
                    tile.clear(),
                    loops.serial("ic", channels, step),
                    tile.write_back(
                        Epilogue(self.products, total),
                        lambda row, column: [start + row, position, column],
                    ),
                ]
            ),
        )


@dataclass(frozen=True)
class RowTile:
    """Tiles and output channel vectors of a register tile."""

    rows: int
    vectors: int
