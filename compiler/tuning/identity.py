"""Names a tuning job by what it is given, so that one that is finished is known at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.frontends.frontend import ModelSource
from tinsmith.compiler.frontends.registry import frontend_of
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.preparation import target_of
from tinsmith.targets.registry import backend_of

# What says where a compiled module goes, not what is in it.
_IRRELEVANT = ("static_library", "runner", "embed_weights", "dump", "timing", "log", "tuned")


def job_digest(model: ModelSource, config: CompileConfig, tasks: int) -> str | None:
    """Equal for equal models and options, with the same version of Tinsmith and its templates.

    `tasks` is how many kernels the job searches. None if the model is quantised with data that
    lie in memory. Raises ModelError for a model that cannot be read.
    """
    data = _data_files(config)
    if data is None:
        return None
    backend = backend_of(target_of(config))
    known = {
        "templates": sorted((t.name, t.version) for t in backend.templates),
        "algorithms": backend.algorithms.version,
    }
    options = {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT}
    said = [tinsmith_version(), known, options, data, tasks]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for part in frontend_of(model).content(model):
        digest.update(part)
    return digest.hexdigest()[:32]


def _data_files(config: CompileConfig) -> list[tuple[Any, ...]] | None:
    """Path, size and time of every file that quantising reads; None for data in memory."""
    given = config.quantization
    found: list[tuple[Any, ...]] = []
    for name in ("calibration", "evaluation", "labels"):
        value = getattr(given, name, None)
        if value is None:
            continue
        if not isinstance(value, (str, Path)):
            return None
        path = Path(value)
        for file in [path, *(sorted(path.rglob("*")) if path.is_dir() else ())]:
            if file.exists():
                status = file.stat()
                found.append((name, str(file), status.st_size, status.st_mtime_ns))
    return found
