"""Names of strangers in messages, tables and generated source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinsmith.compiler.calibration.arrays import stored_arrays
from tinsmith.compiler.cli import output
from tinsmith.compiler.errors import ConfigError, InputError, ModelError, UnsupportedOpError
from tinsmith.compiler.module.write.driver import generate_header
from tinsmith.compiler.module.write.plan import Plan, TensorSpec
from tinsmith.compiler.plain_text import comment_text, is_plain, plain_line
from tinsmith.compiler.tuning import journal

_HOSTILE = "a*/\n#include <x>\\\n??/ \x1b[31m[red]\u202e // \ud800"


def test_a_line_is_plain() -> None:
    line = plain_line(_HOSTILE)
    assert line.isprintable() and "\\x1b[31m" in line and "[red]" in line
    assert plain_line("two  blanks") == "two  blanks"
    assert len(plain_line("n" * 100_000)) < 5000
    assert is_plain("\u51fa\u529b \u00e9") and not is_plain("\x7f")


def test_messages_of_errors_are_plain_lines() -> None:
    for error in (ModelError(_HOSTILE), UnsupportedOpError(_HOSTILE, {_HOSTILE: [_HOSTILE]})):
        assert str(error).isprintable()


def test_everything_that_is_printed_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(_HOSTILE)
    output.note(_HOSTILE)
    output.print_table(_HOSTILE, ["column"], [[_HOSTILE]])
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert line.isprintable()
    # Not taken for markup, which would hide it.
    assert captured.out.count("[red]") == 3


def test_no_name_leaves_the_comment_of_the_header() -> None:
    tensor = TensorSpec(_HOSTILE, "float32", (2, 3))
    plan = Plan((tensor,), (tensor,), (), (), (), (), 0, 0)
    header = generate_header("model", _HOSTILE, plan)
    assert header.count("*/") == header.count("/*") == 1
    assert "\\" not in header and "??/" not in header and "<x>" not in header
    assert comment_text("layer.0/conv:0") == "layer.0/conv:0"


def test_pipes_are_no_data(tmp_path: Path) -> None:
    pipe = tmp_path / "data.npy"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a regular file"):
        stored_arrays(pipe, {"x": ((1,), "float32")})
    with pytest.raises(ConfigError, match="not a regular file"):
        journal.read(pipe)
