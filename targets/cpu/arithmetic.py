"""How a register tile multiplies and accumulates: one class for each kind of number.

Convolution and matrix product have the same loops whatever they compute with.
What differs stands here: the dtypes, how many reduction elements one step takes
(`depth`), and the expression of a step. All arithmetics accumulate exactly what
their definition says: integers never saturate, floats are rounded as float32.

Here are those that any CPU has; a family with instructions of its own adds them in its
`arithmetic.py`, which is known as soon as it is imported (its backend does).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tvm.ir import Expr

from tinsmith.targets.cpu.loops import splat
from tinsmith.targets.spec import TargetSpec

_BY_NAME: dict[str, type[Arithmetic]] = {}


class Arithmetic(ABC):
    """One way to compute `accumulator += value * weights` for a vector of accumulators.

    `widened` is the dtype to which a kernel converts its data before it multiplies (None: it
    reads them as they are). `rows` of data are multiplied together. `temporaries` is the number
    of vector registers that a step takes for itself, `operations` that of its vector operations:
    for each multiply-add, and for each vector of weights that it has to convert.
    """

    name: ClassVar[str]
    data: ClassVar[tuple[str, ...]]
    weights: ClassVar[str]
    accumulator: ClassVar[str]
    depth: ClassVar[int]
    widened: ClassVar[str | None] = None
    rows: ClassVar[int] = 1
    temporaries: ClassVar[int] = 0
    operations: ClassVar[tuple[int, int]] = (1, 0)

    def __init_subclass__(cls) -> None:
        _BY_NAME[cls.name] = cls

    @classmethod
    def lanes(cls, spec: TargetSpec) -> int:
        """Accumulators in a vector register."""
        return spec.float_lanes // 2 if cls.accumulator == "float64" else spec.float_lanes

    @classmethod
    @abstractmethod
    def available(cls, spec: TargetSpec) -> bool:
        """Whether the machine has the instructions."""

    def whole_steps(self, steps: int, taps: int, spec: TargetSpec) -> int:
        """To how many steps the channels of a pixel are filled up with zeros.

        The reduction of a convolution takes the steps of `taps` neighbouring pixels in one go.
        """
        return steps

    @abstractmethod
    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        """The new accumulators.

        `value` holds `depth` neighbouring reduction elements of the data (a scalar where
        `depth` is 1), `weights` `lanes * depth` elements: those of lane 0 first.

        With several `rows`, `value` holds the elements of each, one row after the other,
        `weights` those of `lanes / rows` lanes, and so do the accumulators for each row.
        """


class Float32(Arithmetic):
    """Fused multiply-add of float32."""

    name = "float32"
    data = ("float32",)
    weights = accumulator = "float32"
    depth = 1

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return True

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        return accumulator + splat(value, lanes) * weights


class Float64(Arithmetic):
    """Multiply-add of float64, half as many lanes."""

    name = "float64"
    data = ("float64",)
    weights = accumulator = "float64"
    depth = 1

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return True

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        return accumulator + splat(value, lanes) * weights


class HalfWeights(Float32):
    """Float32 with weights stored as float16, widened when loaded, once for all rows of a tile."""

    name = "float16-weights"
    weights = "float16"
    temporaries = 1
    operations = (1, 2)  # a conversion is two operations of the processor

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        wide = weights.astype(vector("float32", lanes))
        return super().multiply_add(accumulator, value, wide, lanes)


class Bfloat16Weights(HalfWeights):
    """The same with weights stored as bfloat16."""

    name = "bfloat16-weights"
    weights = "bfloat16"


class WidenedInt8(Arithmetic):
    """uint8 or int8 times int8 in 32-bit integers, for machines without a dot product."""

    name = "widened-int8"
    data = ("uint8", "int8")
    weights = "int8"
    accumulator = "int32"
    depth = 1

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return True

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        wide = splat(value.astype("int32"), lanes)
        return accumulator + wide * weights.astype(vector("int32", lanes))


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic that a workload names."""
    return _BY_NAME[name]()


def sums_floats(name: str) -> bool:
    """Whether the arithmetic that a workload names adds up floating-point numbers."""
    return arithmetic_named(name).accumulator.startswith("float")


def choose_arithmetic(
    data: str, weights: str, spec: TargetSpec, most_depth: int = 8
) -> Arithmetic | None:
    """The deepest arithmetic of the machine for operands of these dtypes, if there is one."""
    fitting = [
        arithmetic
        for arithmetic in _BY_NAME.values()
        if data in arithmetic.data
        and weights == arithmetic.weights
        and arithmetic.depth <= most_depth
        and arithmetic.available(spec)
    ]
    return max(fitting, key=lambda arithmetic: arithmetic.depth)() if fitting else None


def vector(dtype: str, lanes: int) -> str:
    """The dtype of a vector of `lanes` elements."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
