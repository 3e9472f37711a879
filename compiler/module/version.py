"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def tinsmith_version() -> str:
    """Version of the `tinsmith` distribution; "0+unknown" when run from a bare checkout."""
    try:
        return version("tinsmith")
    except PackageNotFoundError:
        return "0+unknown"
