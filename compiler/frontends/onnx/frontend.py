"""ONNX as a front end; `tinsmith.compiler.frontends.onnx.model` imports its models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.frontends.foreign_files import told_by_content
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
    from onnx import ModelProto

    from tinsmith.compiler.frontends.imported import ImportedModel


class OnnxFrontend(Frontend):
    """Files that no other front end takes, whatever their names, and `onnx.ModelProto`s.

    An ONNX file begins with nothing that tells it apart for sure.
    """

    name = "ONNX"

    def accepts(self, source: ModelSource) -> bool:
        if path_of(source) is not None:
            return True
        from onnx import ModelProto

        return isinstance(source, ModelProto)

    def read(
        self,
        source: ModelSource,
        shapes: Shapes,
        constants: Constants,
        batch: Size | None = None,
    ) -> ImportedModel:
        from tinsmith.compiler.frontends.onnx.model import import_onnx

        return import_onnx(_accepted(source), shapes, constants, batch)

    def told_of(self, path: Path) -> str | None:
        """Many tools write files that are to become ONNX first."""
        return told_by_content(path)

    def source_name(self, source: ModelSource) -> str:
        model = _accepted(source)
        if isinstance(model, (str, os.PathLike)):
            return str(model)
        return model.graph.name or "model"

    def content(self, source: ModelSource) -> Iterator[bytes]:
        """The model and its tensors, also those that lie in other files."""
        from tinsmith.compiler.frontends.onnx.files import read_model
        from tinsmith.compiler.frontends.onnx.tensors import all_tensors

        model = _accepted(source)
        if not isinstance(model, (str, os.PathLike)):
            yield model.SerializeToString(deterministic=True)
            return
        loaded = read_model(model)
        for tensor in all_tensors(loaded):
            yield tensor.SerializeToString()
            tensor.Clear()
        yield loaded.SerializeToString(deterministic=True)

    def original(self, source: ModelSource, interface: Interface) -> OriginalModel:
        """The file's model as it is, only bound: nothing is imported into Relax for it."""
        from tinsmith.compiler.frontends.onnx.original import original_of

        return original_of(_accepted(source), self.source_name(source), interface)


def _accepted(source: ModelSource) -> str | os.PathLike[str] | ModelProto:
    """`source`, which `accepts` has looked at, with its type."""
    return cast("str | os.PathLike[str] | ModelProto", source)
