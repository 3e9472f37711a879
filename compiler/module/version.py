"""The version of the installed distribution."""

from __future__ import annotations


def tinsmith_version() -> str:
    """That of `tinsmith`, or of `tinsmith-runtime` alone; "0+unknown" in a bare checkout."""
    # Not before it is asked for: commands begin sooner without.
    from importlib.metadata import PackageNotFoundError, version

    for distribution in ("tinsmith", "tinsmith-runtime"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "0+unknown"
