"""How the entries of a batch, here called images, lie in the memory of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.ir import Expr


@dataclass(frozen=True)
class Images:
    """`outer` blocks of `count` images of `inner` elements each: the batch is one axis of three.

    A tensor whose first axis is the batch has one block; time before batch makes many. Shapes do
    not matter, so that views of a tensor have the same images.
    """

    outer: int
    count: int
    inner: int

    @classmethod
    def of_axis(cls, shape: Sequence[int], axis: int, count: int) -> Images | None:
        """The images along one axis, whose extent is a multiple of `count`; None if it is not."""
        if shape[axis] % count:
            return None
        outer = math.prod(shape[:axis])
        return cls(outer, count, math.prod(shape) // (outer * count))

    def position(self, shape: Sequence[int], indices: Sequence[Expr]) -> Expr:
        """The number of the image in which an element lies, of a tensor of `shape`."""
        before = 1
        for axis, extent in enumerate(shape):
            after = math.prod(shape[axis + 1 :])
            if before == self.outer and before * extent * after == self.size:
                rows, rest = divmod(self.inner, after)
                if rest == 0 and rows * self.count == extent:
                    return tirx.floordiv(indices[axis], rows) if rows > 1 else indices[axis]
            before *= extent
        flat: Expr = tirx.IntImm(str(indices[0].ty.dtype), 0)
        for index, extent in zip(indices, shape, strict=True):
            flat = flat * extent + index
        image = tirx.floordiv(flat, self.inner)
        return tirx.floormod(image, self.count) if self.outer > 1 else image

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.outer * self.count * self.inner


def candidates(shape: Sequence[int], count: int, sources: Sequence[Images] = ()) -> list[Images]:
    """The ways in which a tensor may hold the images, the outermost axis first.

    Those of the tensors that it is computed from come after its own axes: time and batch may have
    become one axis.
    """
    found = [Images.of_axis(shape, axis, count) for axis in range(len(shape))]
    for source in sources:
        inner, rest = divmod(math.prod(shape), source.outer * count)
        found += [] if rest else [Images(source.outer, count, inner)]
    return list(dict.fromkeys(images for images in found if images is not None))


def first_images(array: np.ndarray, images: Images | None, count: int) -> np.ndarray:
    """The first `count` images of an array; all of it where it has none."""
    if images is None:
        return array
    before = 1
    for axis, extent in enumerate(array.shape):
        if before == images.outer and extent % images.count == 0:
            return np.ascontiguousarray(
                np.take(array, range(extent // images.count * count), axis=axis)
            )
        before *= extent
    raise ValueError(f"no axis of {array.shape} holds {images}")
