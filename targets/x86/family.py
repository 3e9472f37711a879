"""The family of x86-64."""

from __future__ import annotations

import platform
from collections.abc import Collection

from tinsmith.targets.family import Family
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.detect import detect_native
from tinsmith.targets.x86.specs import ALIASES, PORTABLE, SPECS
from tinsmith.targets.x86.tile_permission import request_tiles


def _detect() -> TargetSpec | None:
    return detect_native() if platform.machine() in ("x86_64", "AMD64") else None


def _refused(features: Collection[str]) -> str:
    return "AMX tiles" if "amx_tile" in features and not request_tiles() else ""


X86 = Family(
    "x86",
    frozenset({"x86_64"}),
    SPECS,
    _detect,
    "tinsmith.targets.x86.backend",
    _refused,
    ALIASES,
    (PORTABLE,),
)
