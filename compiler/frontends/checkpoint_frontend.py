"""Checkpoints as a front end; `tinsmith.compiler.frontends.checkpoint` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.errors import ModelError, ShapeError
from tinsmith.compiler.frontends import CHECKPOINT_SUFFIX
from tinsmith.compiler.frontends.frontend import (
    Constants,
    Frontend,
    Interface,
    ModelSource,
    OriginalModel,
    Shapes,
    path_of,
)

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.imported import ImportedModel


class CheckpointFrontend(Frontend):
    """Files named `*.tinsmith`, which `tinsmith prune` writes."""

    name = "checkpoint"

    def accepts(self, source: ModelSource) -> bool:
        path = path_of(source)
        return path is not None and path.suffix == CHECKPOINT_SUFFIX

    def read(
        self,
        source: ModelSource,
        shapes: Shapes,
        constants: Constants,
        batch: Size | None = None,
    ) -> ImportedModel:
        """A checkpoint has its shapes, and takes no constants."""
        from tinsmith.compiler.frontends.checkpoint import read_checkpoint

        if batch is not None:
            raise ShapeError(f"{source}: --batch {batch}: a checkpoint keeps its shapes")
        return read_checkpoint(Path(str(source)), shapes, constants)

    def original(self, source: ModelSource, interface: Interface) -> OriginalModel:
        """Raises ModelError: nobody else has this graph."""
        raise ModelError(
            f"{source}: is a checkpoint, which no other runtime can run; give an ONNX file"
        )
