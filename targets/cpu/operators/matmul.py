"""Definition of the matrix product, with the right operand packed where it is constant."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tinsmith.targets.cpu.arithmetic import arithmetic_named
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm, weight_at
from tinsmith.targets.template import WORKLOAD_ATTRIBUTE


@dataclass(frozen=True)
class MatmulWorkload:
    """`out[batch..., m, n] = sum_k (left[batch..., m, k] - zero_point) * right[batch..., k, n]`.

    `batch` are the leading extents of the output, `left_batch` and `right_batch` those of
    the operands (broadcast by numpy's rules). `lanes` is the width by which the columns of
    the right operand are packed, 0 where it is read as it lies; `arithmetic` names how
    products are summed (see `tinsmith.targets.cpu.arithmetic`); `zero_point` is that of a left
    operand of integers whose right one is computed, too; `compressed` says how the right
    operand is stored if not as floats.
    """

    batch: tuple[int, ...]
    left_batch: tuple[int, ...]
    right_batch: tuple[int, ...]
    m: int
    n: int
    k: int
    lanes: int = 0
    arithmetic: str = "float32"
    zero_point: int = 0
    compressed: CompressedForm | None = None
    kind: str = "matmul"

    @classmethod
    def from_json(cls, values: dict[str, object]) -> MatmulWorkload:
        """The workload that an annotation carries."""
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if tuples.get("compressed") is not None:
            tuples["compressed"] = CompressedForm(**tuples["compressed"])  # type: ignore[arg-type]
        return cls(**tuples)  # type: ignore[arg-type]

    @property
    def flops(self) -> int:
        """Multiplications and additions of one call."""
        return 2 * math.prod(self.batch) * self.m * self.n * self.k

    @property
    def shares_right(self) -> bool:
        """Whether all batches use one right operand, so that rows of all batches are alike."""
        return math.prod(self.right_batch) == 1 and self.left_batch == self.batch


def pack_columns(matrix: npt.NDArray[Any], lanes: int, depth: int = 1) -> npt.NDArray[Any]:
    """`[K, N]` as `[ceil(N/lanes), ceil(K/depth), lanes*depth]`; what is missing is zero."""
    k, n = matrix.shape
    blocks, steps = -(-n // lanes), -(-k // depth)
    padded = np.zeros((steps * depth, blocks * lanes), matrix.dtype)
    padded[:k, :n] = matrix
    packed = padded.reshape(steps, depth, blocks, lanes).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(packed).reshape(blocks, steps, lanes * depth)


def pack_columns_at_run_time(right: te.Tensor, rows: int, lanes: int, depth: int) -> te.Tensor:
    """`pack_columns` of each matrix `[..., K, N]` of a batch, filled up to `rows`."""
    *batch, k, n = (int(extent) for extent in right.shape)

    def element(*indices: tirx.Expr) -> tirx.Expr:
        *lead, block, step, lane = indices
        row, column = step * depth + lane % depth, block * lanes + lane // depth
        place = (*lead, row, column)
        value = right[place]
        if k == rows and n % lanes == 0:
            return value
        inside = tirx.all(row < k, column < n)
        return tirx.if_then_else(inside, value, tirx.const(0, right.dtype))

    shape = (*batch, -(-n // lanes), rows // depth, lanes * depth)
    return te.compute(shape, element, name="pack_columns")


def define_matmul(
    left: te.Tensor, right: Sequence[te.Tensor], workload: MatmulWorkload
) -> te.Tensor:
    """The product; `right` is one tensor, packed by `pack_columns` if `workload.lanes` is set.

    Where it is compressed, `right` are codes, scales and levels (see `weight_at`).
    """
    w = workload
    arithmetic = arithmetic_named(w.arithmetic)
    depth, wide = arithmetic.depth, arithmetic.accumulator
    k = te.reduce_axis((0, w.k), name="k")

    def at(indices: list[tirx.Expr], batch: tuple[int, ...]) -> list[tirx.Expr]:
        kept = indices[len(indices) - len(batch) :]
        return [tirx.const(0, "int64") if e == 1 else i for i, e in zip(kept, batch, strict=True)]

    def element(*indices: tirx.Expr) -> tirx.Expr:
        *lead, m, n = indices
        row = (*at(lead, w.left_batch), m, k)
        if w.compressed is not None:
            weight = weight_at(
                w.compressed, right, [n // w.lanes], [], tirx.const(0, "int64"), k, n % w.lanes
            )
            return te.sum(left[row] * weight, axis=k)
        column = (*at(lead, w.right_batch), k, n)
        if w.lanes:
            lane = (n % w.lanes) * depth + k % depth
            column = (*at(lead, w.right_batch), n // w.lanes, k // depth, lane)
        value = left[row].astype(wide)
        if w.zero_point:
            value = value - w.zero_point
        return te.sum(value * right[0][column].astype(wide), axis=k)

    return te.compute(
        (*w.batch, w.m, w.n),
        element,
        name="matmul",
        attrs={WORKLOAD_ATTRIBUTE: json.dumps(asdict(w))},
    )
