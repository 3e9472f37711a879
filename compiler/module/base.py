"""What every loaded module offers, whatever its form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.module.golden import FILE_NAME as GOLDEN_NAME
from tinsmith.compiler.module.golden import GoldenVectors, decode_golden
from tinsmith.compiler.module.manifest import Manifest, TensorEntry
from tinsmith.compiler.module.module_file import read_checked
from tinsmith.compiler.module.signature import Inputs, Signature


@dataclass(frozen=True)
class StepTime:
    """Time of one step: its position, its kernel, and the median seconds of a run of it."""

    index: int
    kernel: str
    seconds: float


class Context(ABC):
    """Memory for one run at a time. Made by `Module.context()`."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, np.ndarray]:
        """As `Module.__call__`, on this context."""
        signature = self._signature
        return signature.named(self.run(signature.gather(inputs, named)))

    @abstractmethod
    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """As `Module.run`, on this context."""

    @abstractmethod
    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """As `Module.profile`, on this context."""

    @abstractmethod
    def close(self) -> None:
        """Release the memory; the context cannot be used any more."""


class Module(ABC):
    """A compiled model, ready to run.

    `module(x)` or `module(name=x)` returns a dict from output names to new
    numpy arrays; `module.run([x])` returns them as a list. Inputs must have the
    declared dtype and shape and be C-contiguous: they are read in place. The
    interpreter is released while kernels run; any number of threads may call
    one module at the same time.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._signature = Signature(manifest.name, manifest.inputs, manifest.outputs)

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, np.ndarray]:
        """Run on arrays given in order, by keyword, or as one dict; outputs by name.

        Raises `InputError` when an input is missing, unknown, or not as declared.
        """
        signature = self._signature
        return signature.named(self.run(signature.gather(inputs, named)))

    @abstractmethod
    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Run on `inputs` (a list, or a dict by name); outputs in declared order.

        `outputs` are arrays to fill, of the declared dtype and shape; they must
        not overlap the inputs. Without them new ones are made.
        """

    @abstractmethod
    def context(self) -> Context:
        """A context of its own, to run beside others."""

    @abstractmethod
    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """Median time of each step over `repeats` runs, in order of execution."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Number of threads that share a parallel loop, the caller included; can be set."""

    @threads.setter
    @abstractmethod
    def threads(self, count: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Stop the threads and unload the code. The module cannot be used any more."""

    def golden(self) -> GoldenVectors | None:
        """The golden vectors that were stored with the module, if any.

        Raises `ArtifactError` when they are damaged.
        """
        if GOLDEN_NAME not in self.manifest.files:
            return None
        signature = self._signature
        path = self.path / GOLDEN_NAME
        return decode_golden(
            read_checked(path, self.manifest),
            str(path),
            _described(signature.inputs, signature.input_dtypes),
            _described(signature.outputs, signature.output_dtypes),
        )

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _described(
    tensors: Sequence[TensorEntry], dtypes: Sequence[np.dtype]
) -> list[tuple[np.dtype, tuple[int | None, ...]]]:
    """Dtype and shape of each tensor; extents that are not fixed are None."""
    return [
        (dtype, tuple(extent if isinstance(extent, int) else None for extent in tensor.shape))
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    ]
