"""x86-64 microarchitecture levels; `native` is made by `targets.x86.detect`."""

from __future__ import annotations

from targets.spec import TargetSpec

_V3_FEATURES = frozenset({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
_V4_FEATURES = _V3_FEATURES | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

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
    description="AVX-512 F/BW/CD/DQ/VL (Skylake-SP, Zen 4 and later)",
)

SPECS = (X86_64_V3, X86_64_V4)
