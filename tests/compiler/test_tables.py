"""Tables in terminals of any width: everything is told, and no line is wider."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tinsmith.compiler.cli.output import print_table
from tinsmith.compiler.cli.tables import elided, fitted

COLUMNS = ("kernel", "template", "decisions", "calls", "us", "time")
ROWS = [
    ["fused_convolution1_add_add1_relu_clip_multiply", "convolution float32", "rows=14 vectors=2",
     "2", "25.6", "23.3%"],
    ["softmax", "reduction", "-", "1", "0.6", "2.4%"],
]  # fmt: skip


def shown(width: int, left: int = 3) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(fitted("title", COLUMNS, ROWS, left, width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [140, 115, 80, 60, 30])
def test_nothing_is_lost_and_no_line_is_wider(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    words = set(re.split(r"[\s│,]+", text))
    cells = {word for row in ROWS for cell in row[1:] for word in cell.split()} - {"-"}
    assert cells <= words
    assert "title" in words and "softmax" in words


def test_texts_stand_below_a_name_that_keeps_both_ends() -> None:
    narrow = shown(66)
    assert "template convolution" in narrow and "decisions rows=14 vectors=2" in narrow
    assert re.search(r"fused_conv\w*…\w*multiply", narrow)
    # What has no decisions gets no line about them.
    assert narrow.count("decisions") == 1
    assert "…" not in shown(140)


def test_words_are_wrapped_before_anything_else() -> None:
    rows = [["a", "stays whole because something else reads it"]]
    stream = io.StringIO()
    Console(file=stream, width=40).print(fitted("", ("group", "reason"), rows, 1, 40))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 40
    assert " ".join(re.findall(r"[a-z]+", text.split("│", 1)[1])) == " ".join(
        ["a", *rows[0][1].split()]
    )


def test_elided_names_have_the_width() -> None:
    name = "fused_convolution_add_relu"
    assert elided(name, len(name)) == name
    assert elided(name, 11) == "fused…_relu"
    assert all(len(elided(name, width)) == width for width in range(3, len(name)))


def test_the_width_is_that_of_the_terminal_or_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    print_table("", COLUMNS, ROWS, left=3)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 70
    monkeypatch.delenv("COLUMNS")
    print_table("", COLUMNS, ROWS, left=3)
    assert max(map(len, capsys.readouterr().out.splitlines())) > 100
