"""The reading of option values that several commands share."""

from __future__ import annotations

import pytest

from tinsmith.compiler.cli.options import parse_dims
from tinsmith.compiler.errors import ConfigError


def test_sizes_go_by_the_name_of_the_dimension() -> None:
    assert parse_dims(["batch=3", "a=b=12"]) == {"batch": 3, "a=b": 12}


@pytest.mark.parametrize(
    "text", ["batch", "=3", "batch=", "batch=-1", "batch=x", "batch=" + 5000 * "9"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=N, as in batch=3"):
        parse_dims([text])
