"""Debug sections out of a linked file, and the names of functions left in it.

The linker's C library and runtime bring debug information of a megabyte along. zig drops it only
together with the symbols, by which profilers and disassemblers tell kernels apart.

Layout: System V ABI, "Object Files"; little-endian files of 32 and 64 bits.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from tinsmith.compiler.errors import BuildError

_MAGIC = b"\x7fELF"
_LITTLE_ENDIAN = 1
_ALLOCATED = 2
_NO_BITS = 8
# A section's `info` is the number of another one.
_INFO_LINK = 0x40
_RELOCATIONS = (4, 9)


@dataclass(frozen=True)
class _Layout:
    """Of the file's header and of a section's, by the width of addresses."""

    section_header: struct.Struct
    # Where the file's header tells of section headers: their offset, then (size, number, index
    # of the section of names).
    offset: struct.Struct
    offset_at: int
    numbers_at: int


# Addresses of 32 bits, of 64 bits.
_LAYOUTS = {
    1: _Layout(struct.Struct("<10I"), struct.Struct("<I"), 0x20, 0x2E),
    2: _Layout(struct.Struct("<IIQQQQIIQQ"), struct.Struct("<Q"), 0x28, 0x3A),
}
_NUMBERS = struct.Struct("<HHH")


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def drop_debug_sections(path: Path) -> None:
    """Rewrite a linked file without its debug sections. Raises `BuildError` if it is none."""
    content = path.read_bytes()
    layout = _LAYOUTS.get(content[4]) if content[:4] == _MAGIC and len(content) > 64 else None
    if layout is None or content[5] != _LITTLE_ENDIAN:
        raise BuildError(f"{path.name}: the linker wrote something that is no ELF file")
    try:
        rewritten = _without_debug(content, layout)
    except (struct.error, ValueError, IndexError) as error:
        raise BuildError(f"{path.name}: the linker wrote a damaged ELF file: {error}") from error
    # In place: the mode stays.
    with open(path, "r+b") as stream:
        stream.write(rewritten)
        stream.truncate()
        os.fsync(stream.fileno())


def _without_debug(content: bytes, layout: _Layout) -> bytes:
    (headers_at,) = layout.offset.unpack_from(content, layout.offset_at)
    size, count, names_index = _NUMBERS.unpack_from(content, layout.numbers_at)
    if size != layout.section_header.size:
        raise ValueError(f"section headers of {size} bytes")
    sections = [
        _Section(*layout.section_header.unpack_from(content, headers_at + i * size))
        for i in range(count)
    ]
    names = sections[names_index]

    def name(section: _Section) -> bytes:
        begin = names.offset + section.name
        return content[begin : content.index(b"\0", begin)]

    kept = [i for i, section in enumerate(sections) if not name(section).startswith(b".debug_")]
    first = next((i for i in range(count) if i not in kept), count)
    if any(sections[i].flags & _ALLOCATED for i in range(first, count)):
        raise ValueError("what is loaded stands behind what is not")  # symbols name it by number
    number = {old: new for new, old in enumerate(kept)}
    end = max(
        section.offset + (0 if section.kind == _NO_BITS else section.size)
        for section in sections[:first]
    )
    result = bytearray(content[: max(end, layout.numbers_at + _NUMBERS.size)])
    placed = []
    for i in kept:
        section = sections[i]
        offset = section.offset
        if i > first:
            result += bytes(-len(result) % max(section.alignment, 1))
            offset = len(result)
            result += content[section.offset : section.offset + section.size]
        refers = section.flags & _INFO_LINK or section.kind in _RELOCATIONS
        placed.append(
            replace(
                section,
                offset=offset,
                link=number.get(section.link, 0),
                info=number.get(section.info, 0) if refers else section.info,
            )
        )
    result += bytes(-len(result) % 8)
    layout.offset.pack_into(result, layout.offset_at, len(result))
    _NUMBERS.pack_into(result, layout.numbers_at, size, len(kept), number[names_index])
    for section in placed:
        result += layout.section_header.pack(*vars(section).values())
    return bytes(result)
