"""Weights stored as codes with scales by group, and how a graph carries them.

A weight is `(code - offset) * scale`, where codes of 4 bits are less 8, or `levels[code] * scale`.
All weights of a layer share the levels; scales and offsets differ by output channel and by group
along the reduction. A graph holds the codes one by one, in the weights' own shape; kernels pack
them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import tvm
from tvm import relax

# The levels of uniform codes of 4 bits.
EVEN_LEVELS = np.arange(-8, 8, dtype=np.float32)
EVEN_LEVELS.flags.writeable = False


@dataclass(frozen=True)
class Grouping:
    """Which weights of an output channel share a scale.

    The reduction runs over `taps` kernel positions (1 for a matrix product) with `channels`
    input channels each. Either `taps_together` positions share a scale, or the channels of one
    position are cut into groups of `group_channels` (an even number; the last may be smaller).
    """

    taps: int
    channels: int
    taps_together: int
    group_channels: int

    @classmethod
    def of(cls, taps: int, channels: int, size: int) -> Grouping:
        """Groups of at most `size` weights, of about equal size."""
        if channels <= size:
            return cls(taps, channels, min(taps, size // channels), channels)
        cuts = -(-channels // size)
        even = -(-channels // (2 * cuts)) * 2
        return cls(taps, channels, 1, even)

    @property
    def groups_of_tap(self) -> int:
        """Groups that the channels of one position are cut into."""
        return -(-self.channels // self.group_channels)

    @property
    def count(self) -> int:
        """Scales of one output channel."""
        return -(-self.taps // self.taps_together) * self.groups_of_tap

    def group_of(self, tap: int, channel: int) -> int:
        """The group of a weight; also of arrays, and of expressions of TensorIR."""
        return (tap // self.taps_together) * self.groups_of_tap + channel // self.group_channels

    def indices(self) -> np.ndarray:
        """int `[taps * channels]`: the group of each step of the reduction, channels fastest."""
        step = np.arange(self.taps * self.channels)
        return np.asarray(self.group_of(step // self.channels, step % self.channels))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class CompressedWeights:
    """The weights of a convolution (HWIO) or matrix product (`[K, N]`), compressed.

    codes: int8 in the weights' shape, or uint8 below 16.
    scales: float16 or float32 `[grouping.count, output channels]`.
    levels: float32 `[16]`, or None where a code is its own level.
    offsets: whole numbers, float32 like the scales, or None; not beside levels.
    optional: floats may take their place where those are faster.
    """

    codes: np.ndarray
    scales: np.ndarray
    levels: np.ndarray | None
    grouping: Grouping
    offsets: np.ndarray | None = None
    optional: bool = False

    @property
    def bits(self) -> int:
        """Bits of a stored code."""
        return 8 if self.codes.dtype == np.int8 else 4

    @property
    def even(self) -> bool:
        """Whether a code stands for itself, less 8 where it has 4 bits."""
        return self.levels is None or np.array_equal(self.levels, EVEN_LEVELS)

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and offsets without the padding that a kernel may want."""
        offsets = 0 if self.offsets is None else self.offsets.nbytes
        return self.codes.size * self.bits // 8 + self.scales.nbytes + offsets

    def dequantize(self) -> np.ndarray:
        """float32, in the weights' shape: exactly the numbers that kernels multiply with."""
        if self.bits == 8:
            values = self.codes.astype(np.float32)
        else:
            levels = EVEN_LEVELS if self.levels is None else self.levels
            values = levels[self.codes]
        flat = values.reshape(-1, self.codes.shape[-1])
        groups = self.grouping.indices()
        if self.offsets is not None:
            flat = flat - self.offsets[groups]
        return (flat * self.scales.astype(np.float32)[groups]).reshape(self.codes.shape)


# What a graph calls to have float weights; no such function exists: kernels take its place.
_DECOMPRESS = "tinsmith.decompress"
_PARTS = ("codes", "scales", "offsets", "levels")


def decompress_call(weights: CompressedWeights) -> relax.Call:
    """The expression by which a graph carries compressed weights: a float32 tensor."""
    parts = {name: getattr(weights, name) for name in _PARTS}
    given = {name: array for name, array in parts.items() if array is not None}
    constants = [relax.const(np.ascontiguousarray(a), str(a.dtype)) for a in given.values()]
    attributes = tvm.ir.make_node(
        "ir.DictAttrs",
        parts=" ".join(given),
        optional=int(weights.optional),
        **asdict(weights.grouping),
    )
    return relax.Call(
        tvm.ir.Op.get("relax.call_pure_packed"),
        [relax.ExternFunc(_DECOMPRESS), *constants],
        attributes,
        [relax.TensorType(weights.codes.shape, "float32")],
    )


def compressed_weights(expression: Any) -> CompressedWeights | None:
    """The weights that `decompress_call` made an expression of; None for any other."""
    if not isinstance(expression, relax.Call) or not isinstance(
        expression.args[0] if expression.args else None, relax.ExternFunc
    ):
        return None
    function, *constants = expression.args
    if str(function.global_symbol) != _DECOMPRESS:
        return None
    arrays = [np.asarray(c.value.numpy()) for c in constants]
    parts = dict(zip(str(expression.attrs["parts"]).split(), arrays, strict=True))
    names = [field.name for field in fields(Grouping)]
    grouping = Grouping(**{name: int(expression.attrs[name]) for name in names})
    return CompressedWeights(
        parts["codes"],
        parts["scales"],
        parts.get("levels"),
        grouping,
        parts.get("offsets"),
        bool(expression.attrs["optional"]),
    )
