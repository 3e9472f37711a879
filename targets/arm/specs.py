"""ARM Cortex-A and Neoverse: AArch64 with NEON, and ARMv7-A hard-float with NEON and VFPv4.

Core counts and cache sizes are those of common boards; see Arm's technical
reference manuals for the processors. Rates are of vectors of 128 bits. For the Cortex-A55, -A72,
-A76, Neoverse N1 and N2 they are from Arm's "Software Optimization Guide" of each (tables of
ASIMD floating-point and load instructions; the latency is that of accumulators, which are
forwarded late). There is none for the Cortex-A53, which is taken to be like the A55 but for its
loads of 64 bits (LLVM, AArch64SchedA53.td), nor for the Cortex-A7, whose NEON multiplies one
float in a cycle. What comes from memory and the last cache is an estimate: boards differ.
"""

from __future__ import annotations

from dataclasses import replace

from tinsmith.targets.spec import CoreRates, TargetSpec

_A64_FEATURES = frozenset({"fp", "asimd"})
_A76_FEATURES = _A64_FEATURES | {"asimddp", "asimdhp", "fphp"}
_V1_FEATURES = _A76_FEATURES | {"asimdfhm", "bf16", "i8mm", "sve", "svebf16", "svei8mm"}
_N2_FEATURES = _A76_FEATURES | {"asimdfhm", "bf16", "i8mm", "sve", "sve2", "svebf16", "svei8mm"}
_V7_FEATURES = frozenset({"neon", "vfpv4"})

_A53_RATES = CoreRates(1, 0.5, 1, 4, in_order=True, memory_bytes=1.5, cache_bytes=8)
_A55_RATES = CoreRates(1, 1, 1, 4, in_order=True, memory_bytes=2, cache_bytes=8)
_A72_RATES = CoreRates(2, 1, 2, 3, memory_bytes=2, cache_bytes=8)
_A76_RATES = CoreRates(2, 2, 2, 2, memory_bytes=4, cache_bytes=16)
_NEOVERSE_RATES = CoreRates(2, 2, 2, 2, memory_bytes=6, cache_bytes=16)
_A7_RATES = CoreRates(0.25, 0.5, 0.5, 4, in_order=True, memory_bytes=1, cache_bytes=4)

CORTEX_A53 = TargetSpec(
    name="cortex-a53",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="cortex-a53",
    llvm_attributes=("+neon",),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_A64_FEATURES,
    cores=4,
    l1_bytes=32 * 1024,
    l2_bytes=512 * 1024,
    rates=_A53_RATES,
    description="AArch64, NEON, in order (Raspberry Pi 3, many set-top boxes)",
)

CORTEX_A55 = TargetSpec(
    name="cortex-a55",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="cortex-a55",
    llvm_attributes=("+neon", "+dotprod", "+fullfp16"),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_A76_FEATURES,
    cores=4,
    l1_bytes=32 * 1024,
    l2_bytes=128 * 1024,
    l3_bytes=512 * 1024,
    rates=_A55_RATES,
    description="AArch64, NEON and dot product, in order (RK3566, RK3568, Amlogic S905X4)",
)

CORTEX_A72 = TargetSpec(
    name="cortex-a72",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="cortex-a72",
    llvm_attributes=("+neon",),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_A64_FEATURES,
    cores=4,
    l1_bytes=32 * 1024,
    l2_bytes=1024 * 1024,
    rates=_A72_RATES,
    description="AArch64, NEON, out of order (Raspberry Pi 4)",
)

CORTEX_A76 = TargetSpec(
    name="cortex-a76",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="cortex-a76",
    llvm_attributes=("+neon", "+dotprod", "+fullfp16"),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_A76_FEATURES,
    cores=4,
    l1_bytes=64 * 1024,
    l2_bytes=512 * 1024,
    l3_bytes=2 * 1024 * 1024,
    rates=_A76_RATES,
    description="AArch64, NEON, dot product and half precision (Raspberry Pi 5)",
)

NEOVERSE_N1 = TargetSpec(
    name="neoverse-n1",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="neoverse-n1",
    llvm_attributes=("+neon", "+dotprod", "+fullfp16"),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_A76_FEATURES,
    cores=4,
    l1_bytes=64 * 1024,
    l2_bytes=1024 * 1024,
    l3_bytes=32 * 1024 * 1024,
    rates=_NEOVERSE_RATES,
    description="AArch64, NEON and dot product (Graviton2, Ampere Altra)",
)

NEOVERSE_V1 = TargetSpec(
    name="neoverse-v1",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="neoverse-v1",
    llvm_attributes=("+neon", "+dotprod", "+fullfp16", "+i8mm"),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_V1_FEATURES,
    cores=4,
    l1_bytes=64 * 1024,
    l2_bytes=1024 * 1024,
    l3_bytes=32 * 1024 * 1024,
    rates=_NEOVERSE_RATES,
    description="AArch64, NEON and integer matrix product (Graviton3)",
)

NEOVERSE_N2 = TargetSpec(
    name="neoverse-n2",
    architecture="aarch64",
    llvm_triple="aarch64-linux-gnu",
    llvm_cpu="neoverse-n2",
    llvm_attributes=("+neon", "+dotprod", "+fullfp16", "+i8mm"),
    link_triple="aarch64-linux",
    vector_bits=128,
    vector_registers=32,
    cpu_features=_N2_FEATURES,
    cores=4,
    l1_bytes=64 * 1024,
    l2_bytes=1024 * 1024,
    l3_bytes=32 * 1024 * 1024,
    rates=_NEOVERSE_RATES,
    description="AArch64, NEON, dot product and integer matrix product (ARM servers)",
)

CORTEX_A7 = TargetSpec(
    name="cortex-a7",
    architecture="arm",
    llvm_triple="armv7l-linux-gnueabihf",
    llvm_cpu="cortex-a7",
    llvm_attributes=("+neon", "+vfp4"),
    link_triple="arm-linux",
    link_abi="eabihf",
    vector_bits=128,
    vector_registers=16,
    cpu_features=_V7_FEATURES,
    cores=4,
    l1_bytes=32 * 1024,
    l2_bytes=512 * 1024,
    pointer_bits=32,
    rates=_A7_RATES,
    description="ARMv7-A hard-float, NEON, VFPv4 (Raspberry Pi 2, many microprocessors)",
)

SPECS = (
    CORTEX_A53,
    CORTEX_A55,
    CORTEX_A72,
    CORTEX_A76,
    NEOVERSE_N1,
    NEOVERSE_V1,
    NEOVERSE_N2,
    CORTEX_A7,
)

# What every machine of 64 bits runs.
PORTABLE = replace(
    CORTEX_A53, name="portable", llvm_cpu="generic", cpu_features=frozenset(), description="NEON"
)

# What people call boards and servers that have these processors.
ALIASES = {
    "rpi2": "cortex-a7",
    "rpi3": "cortex-a53",
    "rpi4": "cortex-a72",
    "rpi5": "cortex-a76",
    "raspberrypi2": "cortex-a7",
    "raspberrypi3": "cortex-a53",
    "raspberrypi4": "cortex-a72",
    "raspberrypi5": "cortex-a76",
    "graviton2": "neoverse-n1",
    "graviton3": "neoverse-v1",
    "altra": "neoverse-n1",
    "rk3566": "cortex-a55",
    "rk3568": "cortex-a55",
}
