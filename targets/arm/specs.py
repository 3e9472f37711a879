"""ARM Cortex-A and Neoverse: AArch64 with NEON, and ARMv7-A hard-float with NEON and VFPv4.

Core counts and cache sizes are those of common boards; see Arm's technical
reference manuals for the processors.
"""

from __future__ import annotations

from tinsmith.targets.spec import TargetSpec

_A64_FEATURES = frozenset({"fp", "asimd"})
_A76_FEATURES = _A64_FEATURES | {"asimddp", "asimdhp", "fphp"}
_N2_FEATURES = _A76_FEATURES | {"asimdfhm", "bf16", "i8mm", "sve", "sve2", "svebf16", "svei8mm"}
_V7_FEATURES = frozenset({"neon", "vfpv4"})

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
    description="AArch64, NEON, in order (Raspberry Pi 3, many set-top boxes)",
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
    description="AArch64, NEON, dot product and half precision (Raspberry Pi 5)",
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
    description="ARMv7-A hard-float, NEON, VFPv4 (Raspberry Pi 2, many microprocessors)",
)

SPECS = (CORTEX_A53, CORTEX_A72, CORTEX_A76, NEOVERSE_N2, CORTEX_A7)
