"""Sizes in bytes, for people."""

from __future__ import annotations


def byte_size(count: float) -> str:
    """A number of bytes as a person reads it: `46.8 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
