"""How a register tile multiplies and accumulates: one class for each kind of number.

Convolution and matrix product have the same loops whatever they compute with.
What differs stands here: the dtypes, how many reduction elements one step takes
(`depth`), and the expression of a step. All arithmetics accumulate exactly what
their definition says: integers never saturate, floats are rounded as float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tvm import tirx
from tvm.ir import Expr

from tinsmith.targets.number_formats import has_bfloat16
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.bfloat16 import dot


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

    @classmethod
    def lanes(cls, spec: TargetSpec) -> int:
        """Accumulators in a vector register."""
        return spec.float_lanes // 2 if cls.accumulator == "float64" else spec.float_lanes

    @classmethod
    @abstractmethod
    def available(cls, spec: TargetSpec) -> bool:
        """Whether the machine has the instructions."""

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
        return accumulator + _splat(value, lanes) * weights


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
        return accumulator + _splat(value, lanes) * weights


class HalfWeights(Float32):
    """Float32 with weights stored as float16, widened when loaded, once for all rows of a tile."""

    name = "float16-weights"
    weights = "float16"
    temporaries = 1
    operations = (1, 1)

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
        wide = _splat(value.astype("int32"), lanes)
        return accumulator + wide * weights.astype(vector("int32", lanes))


class Vnni(Arithmetic):
    """AVX-512 VNNI or AVX-VNNI: sums of four products of uint8 by int8, without saturation.

    Intel 64 and IA-32 Architectures Software Developer's Manual, VPDPBUSD.
    """

    name = "vnni"
    data = ("uint8",)
    weights = "int8"
    accumulator = "int32"
    depth = 4

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        if spec.vector_bits == 512:
            return "avx512_vnni" in spec.cpu_features
        return "avx_vnni" in spec.cpu_features

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        four = _splat(tirx.reinterpret("int32", value), lanes)
        return tirx.call_llvm_pure_intrin(
            vector("int32", lanes),
            f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
            accumulator,
            tirx.reinterpret(vector("uint8", 4 * lanes), four),
            weights,
        )


class Avx2Int8(Arithmetic):
    """AVX2 without VNNI: bytes widened to 16 bits, pairs of products summed exactly.

    VPMADDUBSW would take bytes but saturates at 16 bits; VPMADDWD cannot. The data are widened
    in memory, once for all the times that they are read: a pair of them is then broadcast by
    the load itself. Weights are widened when loaded, once for all rows of a tile.
    """

    name = "avx2-int8"
    data = ("uint8",)
    weights = "int8"
    accumulator = "int32"
    depth = 2
    widened = "int16"
    temporaries = 1
    operations = (2, 1)

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.architecture == "x86_64" and (
            spec.vector_bits == 256 or "avx512bw" in spec.cpu_features
        )

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        pair = tirx.reinterpret("int32", value)
        name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
        products = tirx.call_llvm_pure_intrin(
            vector("int32", lanes),
            name,
            tirx.reinterpret(vector("int16", 2 * lanes), _splat(pair, lanes)),
            weights.astype(vector("int16", 2 * lanes)),
        )
        return accumulator + products


class NeonInt8(Arithmetic):
    """NEON without a dot product: 16-bit products of bytes, added in pairs to 32 bits.

    No product of two bytes overflows 16 bits; a sum of two might. Arm A64 Instruction Set
    Architecture, SMULL and SADALP.
    """

    name = "neon-int8"
    data = ("int8",)
    weights = "int8"
    accumulator = "int32"
    depth = 2
    temporaries = 1
    operations = (2, 0)

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.architecture == "aarch64"

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        pairs = tirx.reinterpret(
            vector("int8", 2 * lanes), _splat(tirx.reinterpret("int16", value), lanes)
        )
        wide = vector("int16", 2 * lanes)
        return self._add_pairs(accumulator, pairs.astype(wide) * weights.astype(wide), lanes)

    def _add_pairs(self, accumulator: Expr, products: Expr, lanes: int) -> Expr:
        sums = tirx.call_llvm_pure_intrin(
            vector("int32", lanes), "llvm.aarch64.neon.saddlp", products
        )
        return accumulator + sums


class Armv7Int8(NeonInt8):
    """The same in ARMv7-A with NEON (Arm Architecture Reference Manual, VMULL and VPADAL)."""

    name = "armv7-int8"

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.architecture == "arm" and "neon" in spec.cpu_features

    def _add_pairs(self, accumulator: Expr, products: Expr, lanes: int) -> Expr:
        return tirx.call_llvm_pure_intrin(
            vector("int32", lanes), "llvm.arm.neon.vpadals", accumulator, products
        )


class Sdot(Arithmetic):
    """FEAT_DotProd: sums of four products of int8 (Arm A64 Instruction Set Architecture, SDOT)."""

    name = "sdot"
    data = ("int8",)
    weights = "int8"
    accumulator = "int32"
    depth = 4

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.architecture == "aarch64" and "asimddp" in spec.cpu_features

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        four = _splat(tirx.reinterpret("int32", value), lanes)
        return tirx.call_llvm_pure_intrin(
            vector("int32", lanes),
            "llvm.aarch64.neon.sdot",
            accumulator,
            tirx.reinterpret(vector("int8", 4 * lanes), four),
            weights,
        )


class Smmla(Arithmetic):
    """FEAT_I8MM: 2x2 sums of eight products of int8 (Arm A64 Instruction Set Architecture, SMMLA).

    One instruction multiplies two rows of data by two columns of weights.
    """

    name = "smmla"
    data = ("int8",)
    weights = "int8"
    accumulator = "int32"
    depth = 8
    rows = 2
    # Each pair of rows is put together from two registers.
    temporaries = 2

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.architecture == "aarch64" and "i8mm" in spec.cpu_features

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        return tirx.call_llvm_pure_intrin(
            vector("int32", lanes), "llvm.aarch64.neon.smmla", accumulator, value, weights
        )


class Bfloat16(Arithmetic):
    """AVX512-BF16: sums of two products of bfloat16 in float32 (VDPBF16PS)."""

    name = "bfloat16"
    data = ("bfloat16",)
    weights = "bfloat16"
    accumulator = "float32"
    depth = 2

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return has_bfloat16(spec)

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        pairs = vector("int32", lanes)
        pair = _splat(tirx.reinterpret("int32", value), lanes)
        return dot(accumulator, pair, tirx.reinterpret(pairs, weights))


# In order of preference.
_ARITHMETICS: tuple[type[Arithmetic], ...] = (
    Float32,
    Float64,
    HalfWeights,
    Bfloat16Weights,
    Vnni,
    Avx2Int8,
    Smmla,
    Sdot,
    NeonInt8,
    Armv7Int8,
    WidenedInt8,
    Bfloat16,
)
_BY_NAME = {arithmetic.name: arithmetic for arithmetic in _ARITHMETICS}


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic that a workload names."""
    return _BY_NAME[name]()


def choose_arithmetic(
    data: str, weights: str, spec: TargetSpec, most_depth: int = 8
) -> Arithmetic | None:
    """The best arithmetic of the machine for operands of these dtypes, if there is one."""
    for arithmetic in _ARITHMETICS:
        fits = data in arithmetic.data and weights == arithmetic.weights
        if fits and arithmetic.depth <= most_depth and arithmetic.available(spec):
            return arithmetic()
    return None


def vector(dtype: str, lanes: int) -> str:
    """The dtype of a vector of `lanes` elements."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)
