"""What Linux says of the machine that this process runs on; for the detection of each family."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from tinsmith.targets.spec import DetectionError

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Numbers that programs carry of the machines that run them (ELF, e_machine).
_MACHINES = {40: "arm", 62: "x86_64", 183: "aarch64"}
_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm"}


def process_architecture() -> str:
    """The architecture of this process, as `TargetSpec.architecture` spells it.

    The kernel's may be wider: 32-bit programs run on 64-bit boards.
    """
    try:
        with open("/proc/self/exe", "rb") as program:
            header = program.read(20)
    except OSError:
        header = b""
    if header[:4] == b"\x7fELF":
        order: Literal["little", "big"] = "little" if header[5] == 1 else "big"
        known = _MACHINES.get(int.from_bytes(header[18:20], order))
        if known is not None:
            return known
    machine = platform.machine().lower()
    return _NAMES.get(machine, machine)


def first_processor(path: Path = CPUINFO) -> dict[str, str]:
    """The fields that `/proc/cpuinfo` has of the first processor.

    Raises `DetectionError` if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DetectionError(f"{path}: cannot be read: {error.strerror}") from error
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, colon, value in lines if colon}


def cache_sizes(folder: Path = CACHES) -> dict[int, int]:
    """Bytes of the first core's data or unified cache, by level; those that are told."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        scale = {"K": 1024, "M": 1024 * 1024}.get(size[-1:], 1)
        if kind != "Instruction" and size.rstrip("KM").isdigit():
            sizes[level] = int(size.rstrip("KM")) * scale
    return sizes


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))
