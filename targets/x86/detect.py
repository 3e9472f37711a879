"""Describes the x86-64 machine that this process runs on.

The instruction set is the microarchitecture level plus the features beyond it
that the kernel reports, not the processor's model: a virtual machine may hide
features that its model has. AMX tiles count only if the kernel permits them.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

from tinsmith.targets.machine_at_hand import (
    CACHES,
    CPUINFO,
    cache_sizes,
    first_processor,
    usable_cores,
)
from tinsmith.targets.spec import DetectionError, TargetSpec
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4
from tinsmith.targets.x86.tile_permission import request_tiles

# Linux's name of a feature -> LLVM's, for those beyond the level that code generation can use.
_BEYOND_V3 = {
    "avx_vnni": "avxvnni",
    "avx_vnni_int8": "avxvnniint8",
    "gfni": "gfni",
}
_BEYOND_V4 = {
    **_BEYOND_V3,
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512ifma": "avx512ifma",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}


def detect_native(cpuinfo: Path = CPUINFO, caches: Path = CACHES) -> TargetSpec:
    """The specification of this machine, named "native".

    Raises `DetectionError` when it is not x86-64 or has no AVX2.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise DetectionError(f"this machine is {machine}; name its target instead of 'native'")
    processor = first_processor(cpuinfo)
    flags = frozenset(processor.get("flags", "").split())
    model = processor.get("model name", "unknown processor")
    if flags >= X86_64_V4.cpu_features:
        level, beyond = X86_64_V4, _BEYOND_V4
    elif flags >= X86_64_V3.cpu_features:
        level, beyond = X86_64_V3, _BEYOND_V3
    else:
        missing = ", ".join(sorted(X86_64_V3.cpu_features - flags))
        raise DetectionError(f"this CPU lacks {missing}; the oldest supported is x86-64-v3")
    present = sorted(name for name in beyond if name in flags)
    if "amx_tile" in present and not request_tiles():
        present = [name for name in present if not name.startswith("amx_")]
    sizes = cache_sizes(caches)
    extra = f" with {', '.join(present)}" if present else ""
    return replace(
        level,
        name="native",
        llvm_attributes=(*level.llvm_attributes, *(f"+{beyond[name]}" for name in present)),
        cpu_features=level.cpu_features | frozenset(present),
        cores=usable_cores(),
        l1_bytes=sizes.get(1, level.l1_bytes),
        l2_bytes=sizes.get(2, level.l2_bytes),
        l3_bytes=sizes.get(3, level.l3_bytes),
        # The instructions for it are used on whole registers of 512 bits.
        bfloat16="avx512_bf16" in present,
        description=f"{model}: {level.name}{extra}",
    )
