"""A model of any kind that is read, into Relax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from tinsmith.compiler.errors import ShapeError
from tinsmith.compiler.frontends import CHECKPOINT_SUFFIX
from tinsmith.compiler.frontends.checkpoint import read_checkpoint
from tinsmith.compiler.frontends.imported import ImportedModel
from tinsmith.compiler.frontends.onnx import import_onnx
from tinsmith.compiler.frontends.onnx_batch import Size


def import_model(
    model: str | Path | ModelProto,
    shapes: Mapping[str, Sequence[Size]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    batch: Size | None = None,
) -> ImportedModel:
    """Import an ONNX model, from memory or a file, or a checkpoint, a file named `*.tinsmith`.

    `shapes`, `constants` and `batch` are those of `import_onnx`; a checkpoint has its shapes, and
    takes no constants. Raises ModelError and its subclasses for what cannot be imported.
    """
    if isinstance(model, (str, Path)) and Path(model).suffix == CHECKPOINT_SUFFIX:
        if batch is not None:
            raise ShapeError(f"{model}: --batch {batch}: a checkpoint keeps its shapes")
        return read_checkpoint(Path(model), shapes or {}, constants or {})
    return import_onnx(model, shapes, constants, batch)
