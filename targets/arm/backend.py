"""ARM: NEON, and the dot and matrix products of bytes that newer cores have."""

from __future__ import annotations

from tinsmith.targets.arm import arithmetic  # noqa: F401  (registers this family's)
from tinsmith.targets.cpu.backend import CpuBackend
from tinsmith.targets.number_formats import byte_formats

# SDOT and SMMLA multiply signed by signed bytes.
FORMATS = byte_formats("arm", "int8")


class ArmBackend(CpuBackend):
    """AArch64, and ARMv7-A with NEON."""

    formats = FORMATS


BACKEND = ArmBackend()
