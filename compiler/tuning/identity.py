"""Names a tuning job by what it is given, so that one that is finished is known at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends import CHECKPOINT_SUFFIX
from tinsmith.compiler.frontends.onnx_files import read_model
from tinsmith.compiler.frontends.onnx_tensors import all_tensors
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.preparation import target_of
from tinsmith.targets.registry import backend_of

if TYPE_CHECKING:
    from onnx import ModelProto

# What says where a compiled module goes, not what is in it.
_IRRELEVANT = ("static_library", "runner", "embed_weights", "dump", "timing", "log", "tuned")


def job_digest(model: str | Path | ModelProto, config: CompileConfig, tasks: int) -> str | None:
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
    for part in _content(model):
        digest.update(part)
    return digest.hexdigest()[:32]


def _content(model: str | Path | ModelProto) -> Iterator[bytes]:
    """The bytes of a model, with those of tensors in other files."""
    if not isinstance(model, (str, Path)):
        yield model.SerializeToString(deterministic=True)
        return
    if Path(model).suffix == CHECKPOINT_SUFFIX:
        try:
            yield Path(model).read_bytes()
        except OSError as error:
            raise ModelError(f"{model}: cannot be read: {error.strerror}") from error
        return
    loaded = read_model(model)
    for tensor in all_tensors(loaded):
        yield tensor.SerializeToString()
        tensor.Clear()
    yield loaded.SerializeToString(deterministic=True)


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
