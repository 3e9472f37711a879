"""What a front end is: it knows one format of models, and makes Relax modules of them.

Callers know this interface and `tinsmith.compiler.frontends.registry`, and no format. Nothing here
imports TVM, onnx or numpy: which front end takes a file is told before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

    from tinsmith.compiler.evaluate.inputs import Domains
    from tinsmith.compiler.evaluate.reference import ReferenceMaker
    from tinsmith.compiler.frontends.imported import ImportedModel

# A file, or a model in memory of a type that some front end knows.
ModelSource: TypeAlias = str | os.PathLike[str] | object
Shapes: TypeAlias = Mapping[str, Sequence[Size]]
Constants: TypeAlias = "Mapping[str, np.ndarray]"


def path_of(source: ModelSource) -> Path | None:
    """The file that a model is in; None for a model in memory."""
    return Path(source) if isinstance(source, (str, os.PathLike)) else None


@dataclass(frozen=True)
class Interface:
    """What the module `name` tells of the model that it was compiled from.

    `shapes` are those of its inputs by name, `outputs` names in order; `constants` replaced
    further inputs.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    constants: Constants

    def check(self, source: str, inputs: Collection[str], outputs: Sequence[str]) -> None:
        """Raise ModelError unless a model has these inputs, constants left out, and outputs."""
        if set(inputs) != set(self.shapes) or tuple(outputs) != self.outputs:
            raise ModelError(
                f"{source}: is not the model that {self.name} was compiled from "
                f"(inputs {', '.join(sorted(inputs))}; outputs {', '.join(outputs)})"
            )


@dataclass(frozen=True)
class ForPeers:
    """A model as other runtimes take it, that is as ONNX, in two ways.

    `bound` has the shapes and constants of a module. `untouched` makes the model as its file has
    it, with open dimensions; `constants` are inputs there.
    """

    bound: bytes
    untouched: Callable[[], bytes]
    constants: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OriginalModel:
    """The model behind a module, with the same inputs bound again.

    `domains` says what its inputs may be. `for_peers` is None where no other runtime takes it.
    """

    reference: ReferenceMaker
    domains: Domains
    for_peers: ForPeers | None = None


class Frontend(Protocol):
    """One format of models.

    A class that inherits from this one needs `name`, `accepts` and `read`.
    """

    name: str

    def accepts(self, source: ModelSource) -> bool:
        """Whether a file or a model in memory is for this front end.

        It is asked early and often: what takes long to import or to read is left for `read`. A
        file that is not there has a name all the same.
        """

    def read(
        self,
        source: ModelSource,
        shapes: Shapes,
        constants: Constants,
        batch: Size | None = None,
    ) -> ImportedModel:
        """Import a model that it accepts.

        `shapes` fixes the shape of inputs by name, `constants` replaces inputs by constants; batch
        dimensions left open become `batch`, or 1. A range stays open (`ImportedModel.open_axes`),
        or is refused. Raises ModelError and its subclasses for what cannot be imported.
        """

    def told_of(self, path: Path) -> str | None:
        """What a file or folder that is there surely is, if not of this format after all, and
        what to do then, in one line; raises OSError where it cannot be read.
        """
        return None

    def source_name(self, source: ModelSource) -> str:
        """What messages call the model: its path, or the name that it has itself."""
        return str(source)

    def content(self, source: ModelSource) -> Iterator[bytes]:
        """Bytes that are the same for the same model; ModelError if it cannot be read."""
        path = Path(str(source))
        try:
            yield path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error

    def original(self, source: ModelSource, interface: Interface) -> OriginalModel:
        """The model that a module was compiled from.

        Raises ModelError if it is another one, or if nobody else can run it.
        """
        imported = self.read(source, interface.shapes, interface.constants)
        interface.check(imported.source, imported.input_names, imported.output_names)
        return OriginalModel(imported.required_reference, imported.domains)
