"""Where tuning records lie."""

from __future__ import annotations

from pathlib import Path

from tinsmith import tuning_logs
from tinsmith.compiler.user_folders import cache_folder


def user_folder() -> Path:
    """Where tuning jobs write when they are told nothing else."""
    return cache_folder() / "tuning"


def packaged_folder() -> Path:
    """The records that are shipped with Tinsmith."""
    return Path(tuning_logs.__file__).parent
