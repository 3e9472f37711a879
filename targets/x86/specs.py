"""x86-64 microarchitecture levels; `native` is made by `tinsmith.targets.x86.detect`."""

from __future__ import annotations

from tinsmith.targets.spec import TargetSpec

_V3_FEATURES = frozenset({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
_V4_FEATURES = _V3_FEATURES | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# All that LLVM uses for this processor and the level does not imply.
_SAPPHIRE_RAPIDS_FEATURES = frozenset(
    {
        "amx_bf16",
        "amx_int8",
        "amx_tile",
        "avx512_bf16",
        "avx512_bitalg",
        "avx512_fp16",
        "avx512_vbmi2",
        "avx512_vnni",
        "avx512_vpopcntdq",
        "avx512ifma",
        "avx512vbmi",
        "avx_vnni",
        "gfni",
        "vaes",
        "vpclmulqdq",
    }
)

X86_64_V3 = TargetSpec(
    name="x86-64-v3",
    architecture="x86_64",
    llvm_triple="x86_64-linux-gnu",
    llvm_cpu="x86-64-v3",
    link_triple="x86_64-linux",
    vector_bits=256,
    vector_registers=16,
    cpu_features=_V3_FEATURES,
    cores=4,
    l2_bytes=256 * 1024,
    winograd=True,
    description="AVX2 and FMA (Haswell, Zen and later)",
)

X86_64_V4 = TargetSpec(
    name="x86-64-v4",
    architecture="x86_64",
    llvm_triple="x86_64-linux-gnu",
    llvm_cpu="x86-64-v4",
    # 512-bit registers are not LLVM's default on this level; without them half the width is lost.
    llvm_attributes=("-prefer-256-bit",),
    link_triple="x86_64-linux",
    vector_bits=512,
    vector_registers=32,
    cpu_features=_V4_FEATURES,
    cores=4,
    l2_bytes=1024 * 1024,
    winograd=True,
    description="AVX-512 F/BW/CD/DQ/VL (Skylake-SP, Zen 4 and later)",
)

SAPPHIRE_RAPIDS = TargetSpec(
    name="sapphirerapids",
    architecture="x86_64",
    llvm_triple="x86_64-linux-gnu",
    llvm_cpu="sapphirerapids",
    llvm_attributes=("-prefer-256-bit",),
    link_triple="x86_64-linux",
    vector_bits=512,
    vector_registers=32,
    cpu_features=_V4_FEATURES | _SAPPHIRE_RAPIDS_FEATURES,
    cores=4,
    l1_bytes=48 * 1024,
    l2_bytes=2 * 1024 * 1024,
    bfloat16=True,
    winograd=True,
    description="AVX-512 with VNNI, BF16 and FP16, AMX tiles of int8 and bfloat16",
)

SPECS = (X86_64_V3, X86_64_V4, SAPPHIRE_RAPIDS)

# What every machine runs, for those that are older than the levels above.
PORTABLE = TargetSpec(
    name="portable",
    architecture="x86_64",
    llvm_triple="x86_64-linux-gnu",
    llvm_cpu="x86-64",
    link_triple="x86_64-linux",
    vector_bits=128,
    vector_registers=16,
    description="SSE2",
)

# Other names of the levels, and processors that have them.
ALIASES = {
    "avx2": "x86-64-v3",
    "haswell": "x86-64-v3",
    "avx512": "x86-64-v4",
    "skylakeavx512": "x86-64-v4",
    "spr": "sapphirerapids",
}
