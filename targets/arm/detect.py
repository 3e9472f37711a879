"""Describes the ARM machine that this process runs on: AArch64, or ARMv7-A with NEON.

The instruction set is what the kernel reports, not the processor's model: a hypervisor may
hide features. The model only tells LLVM which instructions are fast.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

from tinsmith.targets.arm.specs import CORTEX_A7, CORTEX_A53
from tinsmith.targets.machine_at_hand import (
    CACHES,
    CPUINFO,
    cache_sizes,
    first_processor,
    usable_cores,
)
from tinsmith.targets.spec import DetectionError, TargetSpec

# Linux's name of a feature -> LLVM's, for those beyond NEON that code generation can use.
_BEYOND_NEON = {
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "bf16": "bf16",
    "i8mm": "i8mm",
}
# Arm's numbers of its processors (Main ID Register, "CPU part" in /proc/cpuinfo).
_ARM = "0x41"
_PARTS = {
    "0xc07": "cortex-a7",
    "0xd03": "cortex-a53",
    "0xd04": "cortex-a35",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd44": "cortex-x1",
    "0xd46": "cortex-a510",
    "0xd47": "cortex-a710",
    "0xd48": "cortex-x2",
    "0xd49": "neoverse-n2",
    "0xd4d": "cortex-a715",
    "0xd4e": "cortex-x3",
    "0xd4f": "neoverse-v2",
}


def detect_native(cpuinfo: Path = CPUINFO, caches: Path = CACHES) -> TargetSpec:
    """The specification of this machine, named "native".

    Raises `DetectionError` when it is no ARM or has no NEON.
    """
    machine = platform.machine()
    if machine.startswith(("aarch64", "arm64")):
        base = CORTEX_A53
    elif machine.startswith("arm"):
        base = CORTEX_A7
    else:
        raise DetectionError(f"this machine is {machine}; name its target instead of 'native'")
    processor = first_processor(cpuinfo)
    reported = frozenset(processor.get("Features", "").split())
    missing = ", ".join(sorted(base.cpu_features - reported))
    if missing:
        raise DetectionError(f"this CPU lacks {missing}; NEON is needed")
    own = processor.get("CPU implementer") == _ARM
    model = _PARTS.get(processor.get("CPU part", "")) if own else None
    wide = base.pointer_bits == 64
    present = sorted(name for name in _BEYOND_NEON if wide and name in reported)
    sizes = cache_sizes(caches)
    extra = f" with {', '.join(present)}" if present else ""
    return replace(
        base,
        name="native",
        llvm_cpu=model or ("generic" if wide else base.llvm_cpu),
        llvm_attributes=(
            *base.llvm_attributes,
            *(f"+{_BEYOND_NEON[name]}" for name in present),
        ),
        cpu_features=base.cpu_features | frozenset(present),
        cores=usable_cores(),
        l1_bytes=sizes.get(1, base.l1_bytes),
        l2_bytes=sizes.get(2, base.l2_bytes),
        l3_bytes=sizes.get(3, base.l3_bytes),
        description=f"{model or 'ARM processor'}: {base.architecture}, NEON{extra}",
    )
