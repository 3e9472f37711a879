"""How long work tells how far it is: one type for passes and compiler."""

from __future__ import annotations

from collections.abc import Callable

# Called with what begins now and the share of the whole that is done.
Progress = Callable[[str, float], None]


def within(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """The progress of a part that takes the whole from the share `begin` to `end`."""
    if progress is None:
        return None
    return lambda name, share: progress(name, begin + (end - begin) * share)
