"""What every loaded module offers, whatever its form."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinsmith.compiler.module.golden import FILE_NAME as GOLDEN_NAME
from tinsmith.compiler.module.golden import Described, GoldenVectors, decode_golden, decode_sets
from tinsmith.compiler.module.manifest import Manifest, TensorEntry, shape_at
from tinsmith.compiler.module.module_file import read_checked
from tinsmith.compiler.module.signature import Inputs, Outputs, Signature

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class StepTime:
    """Time of one step: its position, its kernel, and the median seconds of a run of it."""

    index: int
    kernel: str
    seconds: float


class Context(ABC):
    """Memory for one run at a time. Made by `Module.context()`, released by `close` or `with`."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def __call__(
        self, /, *inputs: Any, out: Any = None, strict: bool = False, **named: Any
    ) -> dict[str, Any]:
        """As `Module.__call__`, on this context."""
        return _called(self, self._signature, inputs, named, out, strict)

    @abstractmethod
    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        """As `Module.run`, on this context."""

    @abstractmethod
    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """As `Module.profile`, on this context."""

    @abstractmethod
    def close(self) -> None:
        """Release the memory; the context cannot be used any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Module(ABC):
    """A compiled model, ready to run.

    `module(x)` or `module(name=x)` returns a dict from output names to new numpy arrays;
    `module.run([x])` returns them as a list. `inputs` and `outputs` say what is taken and
    returned. Any number of threads may call one module at the same time; the interpreter is
    released while kernels run.

    An input is a numpy array, a tensor of another library that exchanges its memory by DLPack
    (torch, JAX) or makes an array of itself, a number or nested lists of numbers. A contiguous
    array of the declared dtype is read in place, anything else is copied, if its values can be
    kept: int32 for int64, float64 (rounded) for float32, int64 for uint8 where all numbers fit.
    bfloat16 is given as floats, which are rounded, or as uint16 bits, and returned as bits.

    A module ends with its `with` block, with `close()`, or when it is forgotten. It can be
    pickled: another process loads it from the same path.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._origin = path
        self._signature = Signature(manifest.name, manifest.inputs, manifest.outputs, manifest.dims)

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Name, dtype (as numpy spells it, and "bfloat16") and shape of each input, in order."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Name, dtype and shape of each output, in order; open extents have a name."""
        return self._signature.outputs

    def __call__(
        self, /, *inputs: Any, out: Any = None, strict: bool = False, **named: Any
    ) -> dict[str, Any]:
        """Run on inputs given in order, by keyword, or as one dict; outputs by name.

        out: what to fill and return instead of new arrays, as `outputs` of `run`; one array
            will do where there is one output.
        strict: refuse inputs that would have to be copied or converted.

        An input that is itself called `out` or `strict` takes that keyword: such a module is
        told these by `run`.

        Raises `InputError` when an input is missing, unknown, of another shape, or cannot be
        converted to its dtype, when an array to fill does not fit, and when the module has been
        closed; `TinsmithError` when there is no memory to run.
        """
        return _called(self, self._signature, inputs, named, out, strict)

    async def arun(self, /, *inputs: Any, **named: Any) -> dict[str, Any]:
        """As `__call__`, in another thread: `await module.arun(x)` lets other tasks go on.

        A task that is cancelled does not wait for the run, which goes on to its end. Runs that
        are awaited together share the processors: set `threads` to what one of them is to have.
        """
        return await asyncio.to_thread(self, *inputs, **named)

    @abstractmethod
    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        """Run on `inputs` (a list, or a dict by name); outputs in declared order.

        `outputs` are arrays to fill, a list or a dict by name: of the declared dtype and shape,
        writeable, not in the memory of an input; tensors that share their memory by DLPack will
        do. They are returned. Without them new numpy arrays are made. `strict` refuses inputs
        that would have to be copied. Raises as `__call__` does.
        """

    @abstractmethod
    def context(self) -> Context:
        """A context of its own, to run beside others: `with module.context() as context: ...`.

        Raises `TinsmithError` when there is no memory for it.
        """

    @abstractmethod
    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """Median time of each step over `repeats` runs, in order of execution.

        Raises `InputError` as `run` does.
        """

    @property
    @abstractmethod
    def threads(self) -> int:
        """Number of threads that share a parallel loop, the caller included; can be set.

        0 sets as many as the process may use. Raises `InputError` for a number out of range.
        """

    @threads.setter
    @abstractmethod
    def threads(self, count: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Stop the threads and unload the code. The module cannot be used any more."""

    def golden(self) -> GoldenVectors | None:
        """The golden vectors that were stored with the module, if any.

        Of several sets, for several sizes of an open dimension, the first, which is the smallest.
        Raises `ArtifactError` when they are damaged.
        """
        return next(iter(self.golden_sets()), None)

    def golden_sets(self) -> tuple[GoldenVectors, ...]:
        """All golden vectors that were stored with the module, from the smallest sizes on.

        Raises `ArtifactError` when they are damaged.
        """
        if GOLDEN_NAME not in self.manifest.files:
            return ()
        path = self.path / GOLDEN_NAME
        data = read_checked(path, self.manifest)
        if not self.manifest.dims:
            return (decode_golden(data, str(path), *self._described({})),)

        def at(sizes: tuple[int, ...]) -> tuple[Described, Described]:
            named = {}
            for size, dim in zip(sizes, self.manifest.dims, strict=True):
                if not dim.low <= size <= dim.high:
                    raise ValueError("sizes")
                named[dim.name] = size
            return self._described(named)

        return decode_sets(data, str(path), at)

    def _described(self, sizes: Mapping[str, int]) -> tuple[Described, Described]:
        """Dtype and shape of each input and output; extents that are not fixed are None."""
        signature = self._signature
        return (
            _described(signature.inputs, signature.input_dtypes, sizes),
            _described(signature.outputs, signature.output_dtypes, sizes),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(map(_told, self.inputs)) or "nothing"
        gives = ", ".join(map(_told, self.outputs))
        return (
            f"<Module {self.manifest.name!r}: {takes} -> {gives}; {self.manifest.form}, "
            f"for {self.manifest.target.name}, {self.threads} thread{'s' * (self.threads != 1)}, "
            f"{str(self._origin)!r}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        from tinsmith.compiler.module.loader import load  # which imports this

        return load, (os.path.abspath(self._origin), self.threads)


def _called(
    runs: Context | Module,
    signature: Signature,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
    out: Any,
    strict: bool,
) -> dict[str, Any]:
    """A call of a module or of a context, whose options inputs of the same names take."""
    if out is not None or strict is not False:
        out = signature.keyword("out", out, None, named)
        strict = signature.keyword("strict", strict, False, named)
        if out is not None and not isinstance(out, list | tuple | dict):
            out = [out]
    return signature.named(runs.run(signature.gather(inputs, named), out, strict=strict))


def _told(tensor: TensorEntry) -> str:
    return f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _described(
    tensors: Sequence[TensorEntry], dtypes: Sequence[np.dtype], sizes: Mapping[str, int]
) -> Described:
    shapes = (shape_at(tensor.shape, sizes) for tensor in tensors)
    return [
        (dtype, tuple(extent if isinstance(extent, int) else None for extent in shape))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
