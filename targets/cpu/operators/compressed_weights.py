"""Compressed weights as kernels store and read them.

Codes lie in the packed order of float weights; codes of 4 bits share a byte with those of the
next input channel, the earlier one in the low nibble, so that one byte vector holds two steps
of the reduction. Scales are packed like weights whose input channels are the groups, and
behind all scales of a column lie its offsets, if there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te
from tvm.ir import Expr

from tinsmith.targets.compressed_weights import CompressedWeights, Grouping


@dataclass(frozen=True)
class CompressedForm:
    """What a kernel must know of compressed weights; part of its workload.

    `bits` are those of a code; `even` says that codes of 4 bits are levels with an offset
    of 8, so that no table is looked up; `table` that there is one all the same, `offsets`
    that codes have offsets. The rest is that of `Grouping`.
    """

    bits: int
    even: bool
    taps: int
    channels: int
    taps_together: int
    group_channels: int
    table: bool = False
    offsets: bool = False

    @classmethod
    def of(cls, weights: CompressedWeights) -> CompressedForm:
        """The form of given weights."""
        return cls(
            weights.bits,
            weights.even,
            **asdict(weights.grouping),
            table=weights.levels is not None,
            offsets=weights.offsets is not None,
        )

    @property
    def grouping(self) -> Grouping:
        """Which steps of the reduction share a scale."""
        return Grouping(self.taps, self.channels, self.taps_together, self.group_channels)

    @property
    def steps(self) -> int:
        """Steps of the reduction that share a byte."""
        return 8 // self.bits


def stored_operands(
    weights: CompressedWeights, pack: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    """Codes, scales with offsets and, where there are any, levels as a kernel reads them.

    `pack` packs float weights of the shape of the codes as `[..., steps, lanes]`.
    """
    codes = pack(weights.codes)
    # One step of the reduction for each group; an array of as many axes as the weights.
    scales = weights.scales
    if weights.offsets is not None:
        scales = np.concatenate([scales.astype(np.float32), weights.offsets])
    scales = scales.reshape((1,) * (weights.codes.ndim - 2) + scales.shape)
    if weights.bits == 8:
        return [codes, pack(scales)]
    missing = codes.shape[-2] % 2
    whole = np.pad(codes, [(0, 0)] * (codes.ndim - 2) + [(0, missing), (0, 0)])
    bytes_of_two = np.ascontiguousarray(whole[..., 0::2, :] | (whole[..., 1::2, :] << 4))
    return [bytes_of_two, pack(scales), *([] if weights.levels is None else [weights.levels])]


def weight_at(
    form: CompressedForm,
    operands: Sequence[te.Tensor],
    lead: Sequence[Expr],
    position: Sequence[Expr],
    tap: Expr,
    channel: Expr,
    lane: Expr,
) -> Expr:
    """The float32 weight of one step, for the definition of an operator.

    `operands` are those of `stored_operands`; `lead` are the indices of the packed
    block, `position` those of the kernel position.
    """
    codes, scales = operands[:2]
    group = form.grouping.group_of(tap, channel)
    origin = [0 for _ in position]
    scale = scales(*lead, *origin, group, lane).astype("float32")
    stored = codes(*lead, *position, channel // form.steps, lane)
    if form.bits == 8:
        value = stored.astype("float32")
    else:
        code = (stored.astype("int32") >> (channel % 2 * 4).astype("int32")) & 15
        value = operands[2][code] if form.table else (code - 8).astype("float32")
    if form.offsets:
        value = value - scales(*lead, *origin, group + form.grouping.count, lane)
    return value * scale
