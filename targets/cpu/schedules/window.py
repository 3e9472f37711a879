"""How a sliding window meets the borders of an image: shared by convolution and pooling.

An output line is covered by tiles of a fixed number of pixels. Interior tiles
run in a loop without any test. Tiles that touch the left or right border are
peeled off, so that a template can leave out, at compile time, the steps that
would meet padding, or give them the padding as a constant. Rows above and below
the image are skipped by the bounds of the loop over the window's height, unless
the padding is no zero. Where the line is no multiple of the tile,
the last tile overlaps the one before it and computes some pixels twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.window import ChannelwiseWorkload


@dataclass(frozen=True)
class Window:
    """One axis pair of a sliding window; all extents in pixels, padding at the top and left."""

    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    dilation_height: int
    dilation_width: int
    pad_top: int
    pad_left: int

    @classmethod
    def of(cls, workload: ConvolutionWorkload | ChannelwiseWorkload) -> Window:
        """The window of a workload: the fields of the same names."""
        return cls(**{field.name: getattr(workload, field.name) for field in fields(cls)})

    def input_row(self, y: Expr, kh: Index) -> Expr:
        """The input row that kernel row `kh` reads for output line `y`."""
        return y * self.stride_height + index(kh) * self.dilation_height - self.pad_top

    def input_column(self, x: Expr, kw: Index) -> Expr:
        """The input column that kernel column `kw` reads for output pixel `x`."""
        return x * self.stride_width + index(kw) * self.dilation_width - self.pad_left

    def valid_pixels(self, start: int, count: int, kw: int) -> list[int]:
        """Those of `count` pixels from `start` whose input for kernel column `kw` exists."""
        offset = kw * self.dilation_width - self.pad_left
        return [
            r for r in range(count) if 0 <= (start + r) * self.stride_width + offset < self.in_width
        ]

    def valid_kernel_rows(self, y: Expr) -> tuple[Index, Index]:
        """First kernel row inside the image, and how many there are, for output line `y`."""
        return _valid_taps(
            y,
            self.in_height,
            self.out_height,
            self.kernel_height,
            self.stride_height,
            self.dilation_height,
            self.pad_top,
        )

    def kernel_rows(
        self, y: Expr, inside: Callable[[Expr], Stmt], outside: Callable[[Expr], Stmt] | None
    ) -> Stmt:
        """The kernel rows of output line `y`: those `inside` the image, and the others.

        Without `outside` the others are left out.
        """
        first, count = self.valid_kernel_rows(y)
        if outside is None or isinstance(count, int):
            return loops.serial("kh", count, inside, start=first)

        def either(kh: Expr) -> Stmt:
            row = self.input_row(y, kh)
            exists = tirx.all(row >= 0, row < self.in_height)
            return tirx.IfThenElse(exists, inside(kh), outside(kh))

        return loops.serial("kh", self.kernel_height, either)

    def cover_line(self, pixels: int, tile: Callable[[Expr, int | None], Stmt]) -> Stmt:
        """Covers an output line with tiles of `pixels` pixels.

        `tile(x, border)` is called with the first pixel; `border` is that pixel as a number
        where the tile meets padding, None where it does not.
        """
        count = -(-self.out_width // pixels)
        starts = [min(i * pixels, self.out_width - pixels) for i in range(count)]
        regular = [
            i for i in range(count) if starts[i] == i * pixels and self._inside(starts[i], pixels)
        ]
        statements: list[Stmt] = []
        for i, start in enumerate(starts):
            if i not in regular:
                border = None if self._inside(start, pixels) else start
                statements.append(tile(index(start), border))
            elif i == regular[0]:
                statements.append(
                    loops.serial(
                        "tile",
                        len(regular),
                        lambda t, first=i: tile((t + first) * pixels, None),
                    )
                )
        return loops.sequence(statements)

    def _inside(self, start: int, pixels: int) -> bool:
        return all(
            len(self.valid_pixels(start, pixels, kw)) == pixels for kw in range(self.kernel_width)
        )


def _valid_taps(
    position: Expr, extent: int, outputs: int, taps: int, stride: int, dilation: int, pad: int
) -> tuple[Index, Index]:
    if pad == 0 and (outputs - 1) * stride + (taps - 1) * dilation < extent:
        return 0, taps
    base = position * stride - pad
    first = tirx.max(index(0), tirx.floordiv(index(dilation - 1) - base, index(dilation)))
    end = tirx.min(index(taps), tirx.floordiv(index(extent - 1 + dilation) - base, index(dilation)))
    return first, tirx.max(end - first, index(0))
