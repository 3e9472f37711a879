"""The model that a module was compiled from, opened again by its front end."""

from __future__ import annotations

from pathlib import Path

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.frontends.frontend import Interface, OriginalModel
from tinsmith.compiler.frontends.registry import frontend_of
from tinsmith.compiler.module.manifest import Manifest


def open_original(path: Path, manifest: Manifest) -> OriginalModel:
    """Read the model in `path` and bind its inputs as the module `manifest` describes has them.

    Raises ModelError if the file is unreadable or has other inputs or outputs than the module.
    """
    config = CompileConfig.from_dict({"constants": manifest.config.get("constants", {})})
    shapes = {t.name: tuple(int(size) for size in t.shape) for t in manifest.inputs}
    outputs = tuple(tensor.name for tensor in manifest.outputs)
    interface = Interface(manifest.name, shapes, outputs, dict(config.constants))
    return frontend_of(path).original(path, interface)
