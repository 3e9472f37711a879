"""Can this machine run a module? Checked before any of its code is loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tinsmith.compiler.errors import ArtifactError
from tinsmith.targets.machine_at_hand import process_architecture
from tinsmith.targets.registry import FAMILIES

if TYPE_CHECKING:  # `doctor` looks at machines where what manifests need may be missing
    from tinsmith.compiler.module.manifest import MachineEntry


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """The feature names that the Linux kernel prints for the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def check_machine(name: str, target: MachineEntry) -> None:
    """Raise `ArtifactError` when this machine is not one that `target` describes."""
    if target.architecture != process_architecture():
        raise ArtifactError(
            f"{name}: compiled for {target.architecture} ({target.name}), "
            f"this machine is {process_architecture()}; compile it with another --target"
        )
    missing = sorted(set(target.cpu_features) - cpu_features())
    if missing:
        raise ArtifactError(
            f"{name}: compiled for {target.name}, this CPU lacks {', '.join(missing)}; "
            "compile it with another --target"
        )
    for family in FAMILIES:
        refused = family.refused(target.cpu_features)
        if process_architecture() in family.architectures and refused:
            raise ArtifactError(
                f"{name}: compiled for {target.name}, this system does not permit "
                f"{refused}; compile it with another --target"
            )
