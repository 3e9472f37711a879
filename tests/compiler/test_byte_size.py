"""Sizes in bytes, for people."""

from __future__ import annotations

from tinsmith.compiler.byte_size import byte_size


def test_sizes_for_people() -> None:
    assert [byte_size(n) for n in (5, 1536, 3 * 2**20, 5 * 2**30)] == [
        "5 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
