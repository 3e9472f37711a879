"""Text of strangers, made fit to be shown: a name in a model file may hold anything.

An escape sequence would steer the terminal, a line break would forge a second message, a
bidirectional override would show another text than is there.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_MESSAGE = 4000

# Control, format (bidirectional overrides, zero widths), lone surrogates, line separators.
_UNFIT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def is_plain(text: str) -> bool:
    """Whether every character of `text` shows as itself and steers nothing."""
    return text.isprintable() or not any(unicodedata.category(c) in _UNFIT for c in text)


def plain_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    r"""`text` as one line: its lines joined, what is not plain as an escape such as `\x1b`.

    Of more than `longest` characters the middle is left out.
    """
    lines = text.replace("\t", " ").splitlines()
    line = lines[0] if len(lines) == 1 else " ".join(part.strip() for part in lines if part.strip())
    if not is_plain(line):
        line = "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in line)
    if len(line) > longest:
        line = f"{line[: longest * 3 // 4]} [...] {line[-longest // 4 :]}"
    return line


def comment_text(name: str) -> str:
    """`name` as it may stand in a comment of generated source: nothing in it can end one.

    Neither `*/`, nor a backslash or trigraph that joins lines, nor a line break gets through.
    """
    return re.sub(r"[^A-Za-z0-9_.:/-]", "_", name)[:200]
