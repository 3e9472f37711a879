"""How ARM multiplies and accumulates bytes: NEON without a dot product, SDOT, SMMLA."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from tinsmith.targets.cpu.arithmetic import Arithmetic, vector
from tinsmith.targets.cpu.loops import splat
from tinsmith.targets.spec import TargetSpec


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
            vector("int8", 2 * lanes), splat(tirx.reinterpret("int16", value), lanes)
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
        four = splat(tirx.reinterpret("int32", value), lanes)
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
