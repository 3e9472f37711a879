"""The version of the installed distribution."""

from __future__ import annotations


def tinsmith_version() -> str:
    """Version of the `tinsmith` distribution; "0+unknown" when run from a bare checkout."""
    # Not before it is asked for: commands begin sooner without.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tinsmith")
    except PackageNotFoundError:
        return "0+unknown"
