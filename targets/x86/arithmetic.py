"""How x86-64 multiplies and accumulates short numbers: VNNI, AVX2 without it, AVX512-BF16."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from tinsmith.targets.cpu.arithmetic import Arithmetic, vector
from tinsmith.targets.cpu.loops import splat
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.bfloat16 import dot
from tinsmith.targets.x86.tile_instructions import whole_tile_steps


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

    def whole_steps(self, steps: int, taps: int, spec: TargetSpec) -> int:
        return whole_tile_steps(self.name, steps, taps, spec)

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        four = splat(tirx.reinterpret("int32", value), lanes)
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
            tirx.reinterpret(vector("int16", 2 * lanes), splat(pair, lanes)),
            weights.astype(vector("int16", 2 * lanes)),
        )
        return accumulator + products


class Bfloat16(Arithmetic):
    """AVX512-BF16: sums of two products of bfloat16 in float32 (VDPBF16PS)."""

    name = "bfloat16"
    data = ("bfloat16",)
    weights = "bfloat16"
    accumulator = "float32"
    depth = 2

    @classmethod
    def available(cls, spec: TargetSpec) -> bool:
        return spec.bfloat16

    def whole_steps(self, steps: int, taps: int, spec: TargetSpec) -> int:
        return whole_tile_steps(self.name, steps, taps, spec)

    def multiply_add(self, accumulator: Expr, value: Expr, weights: Expr, lanes: int) -> Expr:
        pairs = vector("int32", lanes)
        pair = splat(tirx.reinterpret("int32", value), lanes)
        return dot(accumulator, pair, tirx.reinterpret(pairs, weights))
