"""The family of AArch64, and of ARMv7-A with NEON."""

from __future__ import annotations

import platform

from tinsmith.targets.arm.detect import detect_native
from tinsmith.targets.arm.specs import ALIASES, PORTABLE, SPECS
from tinsmith.targets.family import Family
from tinsmith.targets.spec import TargetSpec


def _detect() -> TargetSpec | None:
    return detect_native() if platform.machine().startswith(("aarch64", "arm")) else None


ARM = Family(
    "arm",
    frozenset({"aarch64", "arm"}),
    SPECS,
    _detect,
    "tinsmith.targets.arm.backend",
    aliases=ALIASES,
    portable=(PORTABLE,),
)
