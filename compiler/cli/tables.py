"""Tables that fit the terminal, with nothing cut off.

Where a table is too wide, columns of words are wrapped; if that is not enough, the texts of a row
stand below its first one, of which the middle is left out; and if even its numbers do not fit,
every row becomes a paragraph.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported with the first table, not with every command
    from rich.console import Console, Group, RenderableType
    from rich.table import Table

# Of a file or a pipe, which has no width of its own.
_WIDE = 140
# Of what a first column with texts below it leaves of a name.
_LEAST_NAME = 20
# A border, and a space on both sides of each cell.
_BORDERS = 3
_ELLIPSIS = "…"


def console() -> Console:
    """Standard output: as wide as the terminal or `COLUMNS`, or wide enough for most tables."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else _WIDE, highlight=False, markup=False)


def elided(text: str, width: int) -> str:
    """`text` with its middle left out if it is longer than `width`: both ends tell names apart."""
    if len(text) <= width:
        return text
    kept = max(width - len(_ELLIPSIS), 2)
    return f"{text[: kept - kept // 2]}{_ELLIPSIS}{text[len(text) - kept // 2 :]}"


def fitted(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int
) -> RenderableType:
    """`rows` below `columns` in at most `width` characters; all but `left` are right-aligned."""
    widths = _widths(columns, rows, width)
    if widths is not None:
        return _table(title, columns, rows, left, widths)
    if left > 1:
        numbers = [(row[0], *row[left:]) for row in rows]
        names = (columns[0], *columns[left:])
        others = _widths(names[1:], [row[1:] for row in numbers], width)
        used = sum(others) + _BORDERS * len(names) + 1 if others is not None else width
        if others is not None and width - used >= _LEAST_NAME:
            room = width - used
            told = [(_below(row, columns, left, room), *row[left:]) for row in rows]
            longest = max(len(line) for row in told for line in row[0].splitlines())
            return _table(title, names, told, 1, [max(longest, len(names[0])), *others])
    return _paragraphs(title, columns, rows, width)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column so that all of them fit, wrapped between words; None if none do."""
    cells = [[title, *(row[i] for row in rows)] for i, title in enumerate(columns)]
    widths = [max(map(len, column)) for column in cells]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    surplus = sum(widths) + _BORDERS * len(columns) + 1 - width
    while surplus > 0:
        widest = max(range(len(columns)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] <= least[widest]:
            return None
        widths[widest] -= 1
        surplus -= 1
    return widths


def _below(row: Sequence[str], columns: Sequence[str], left: int, width: int) -> str:
    lines = [elided(row[0], width)]
    for title, cell in zip(columns[1:left], row[1:left], strict=True):
        if cell.strip(" -"):
            lines += textwrap.wrap(
                f"{title} {cell}", width, initial_indent="  ", subsequent_indent="    "
            )
    return "\n".join(lines)


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int,
    widths: Sequence[int],
) -> Table:
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold"
    )
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        justify = "left" if index < left else "right"
        table.add_column(column, justify=justify, overflow="fold", width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def _paragraphs(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Group:
    from rich.console import Group
    from rich.text import Text

    parts = [Text(title, style="bold")] if title else []
    for row in rows:
        told = [f"{name} {cell}".strip() for name, cell in zip(columns[1:], row[1:], strict=True)
                if cell.strip()]  # fmt: skip
        parts.append(Text(row[0]))
        lines = textwrap.wrap(", ".join(told), width, initial_indent="  ", subsequent_indent="  ")
        parts += map(Text, lines)
    return Group(*parts)
