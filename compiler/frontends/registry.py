"""All front ends: one line for each. Nothing here imports TVM or onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.checkpoint_frontend import CheckpointFrontend
from tinsmith.compiler.frontends.frontend import Constants, Frontend, ModelSource, Shapes
from tinsmith.compiler.frontends.onnx.frontend import OnnxFrontend

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.imported import ImportedModel

# The first that accepts a model reads it; the last takes files of any name.
FRONTENDS: tuple[Frontend, ...] = (CheckpointFrontend(), OnnxFrontend())


def frontend_of(source: ModelSource) -> Frontend:
    """The front end of a model; raises ModelError if there is none."""
    for frontend in FRONTENDS:
        if frontend.accepts(source):
            return frontend
    known = ", ".join(frontend.name for frontend in FRONTENDS)
    raise ModelError(f"{type(source).__name__}: not a model of any known kind ({known})")


def import_model(
    source: ModelSource,
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    batch: Size | None = None,
) -> ImportedModel:
    """Import a model, from memory or a file, by the front end that accepts it.

    `shapes`, `constants` and `batch` are those of `Frontend.read`. Raises ModelError and its
    subclasses for what cannot be imported.
    """
    return frontend_of(source).read(source, shapes or {}, constants or {}, batch)
