"""Running a self-contained module through its C interface."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import ArtifactError, InputError, TinsmithError
from tinsmith.compiler.module.base import Context, Module, StepTime
from tinsmith.compiler.module.cinterface import MAX_THREADS
from tinsmith.compiler.module.manifest import Manifest
from tinsmith.compiler.module.shared_library import SharedLibrary
from tinsmith.compiler.module.signature import Inputs, Outputs, refuse_overlap
from tinsmith.compiler.processes import lock_that_forks_open


def address_of(array: np.ndarray) -> int:
    """Where the elements of a contiguous array begin.

    `array.ctypes.data` takes three times as long, which small models would notice.
    """
    if array.size and array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    return int(array.ctypes.data)


class SelfContainedContext(Context):
    """An arena of its own."""

    def __init__(self, module: SelfContainedModule) -> None:
        super().__init__(module._signature)
        self._module = module
        self._handle = module._library.create()
        if not self._handle:
            raise TinsmithError(f"{module.manifest.name}: {module._error()}")
        self._inputs = (ctypes.c_void_p * len(self._signature.inputs))()
        self._outputs = (ctypes.c_void_p * len(self._signature.outputs))()
        # What `run` takes before the tensors: of interface 1 nothing, then the sizes, or NULL.
        dims = self._signature.dims
        self._dims = (ctypes.c_int64 * len(dims))() if dims else None
        self._sizes: tuple[Any, ...] = () if module._library.abi < 2 else (self._dims,)
        self._threads = 0  # those of the library
        self._lock = lock_that_forks_open()

    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        arrays = self._signature.checked(inputs, strict)
        sizes = self._signature.sizes(arrays)
        results = self._signature.results(outputs, sizes)
        if outputs is not None:
            refuse_overlap(arrays, results)
        with self._lock:
            self._bind(arrays, results, sizes)
            if self._module._run(self._handle, *self._sizes, self._inputs, self._outputs):
                raise TinsmithError(f"{self._module.manifest.name}: {self._module._error()}")
        return results if outputs is None else self._signature.delivered(results, outputs)

    def profile(
        self, inputs: Inputs, repeats: int = 10, outputs: Outputs | None = None
    ) -> list[StepTime]:
        """As `Module.profile`, on this context; `outputs` are arrays to fill, which may overlap."""
        arrays = self._signature.checked(inputs)
        sizes = self._signature.sizes(arrays)
        results = self._signature.results(outputs, sizes)
        with self._lock:
            library = self._bind(arrays, results, sizes)
            count = library.step_count
            seconds = (ctypes.c_double * max(count, 1))()
            samples = np.empty((max(repeats, 1), count))
            for row in samples:
                tensors = self._inputs, self._outputs
                if library.profile(self._handle, *self._sizes, *tensors, seconds):
                    raise TinsmithError(f"{self._module.manifest.name}: {self._module._error()}")
                row[:] = seconds[:count]
            names = [library.step_names[i].decode() for i in range(count)]
        pairs = zip(names, np.median(samples, axis=0), strict=True)
        return [StepTime(i, name, float(time)) for i, (name, time) in enumerate(pairs)]

    def _bind(
        self,
        arrays: Sequence[np.ndarray],
        results: Sequence[np.ndarray],
        sizes: Mapping[str, int],
    ) -> Any:
        if not self._handle or self._module._closed:
            raise InputError(f"{self._module.manifest.name}: the module has been closed")
        if self._threads != self._module._threads:
            self._take_threads(self._module._threads)
        if self._dims is not None:
            self._dims[:] = list(sizes.values())
        for i, array in enumerate(arrays):
            self._inputs[i] = address_of(array)
        for i, array in enumerate(results):
            self._outputs[i] = address_of(array)
        return self._module._library

    def _take_threads(self, count: int) -> None:
        library = self._module._library
        # The threads of a library of interface 1 and revision 0 are the same for all its contexts.
        if library.abi < 2 and library.revision < 1:
            status = library.set_threads(count)
        else:
            status = library.set_context_threads(self._handle, count)
        if status:
            raise InputError(f"threads={count}: {self._module._error()}")
        self._threads = count

    def close(self) -> None:
        with self._lock:
            if self._handle and not self._module._closed:
                self._module._library.destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


class SelfContainedModule(Module):
    """A shared library with its plan, runtime and weights."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Raises `ArtifactError` if the files in `path` are not those of the manifest."""
        super().__init__(path, manifest)
        self._shared = SharedLibrary.acquire(path, manifest)
        self._library = self._shared.interface
        self._run = self._library.run
        self._closed = False
        self._threads = 0
        self._lock = lock_that_forks_open()
        self._idle: list[SelfContainedContext] = []
        try:
            self._check_signature()
        except BaseException:
            self.close()
            raise

    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        context = self._borrow()
        try:
            return context.run(inputs, outputs, strict=strict)
        finally:
            self._give_back(context)

    def _borrow(self) -> SelfContainedContext:
        with self._lock:
            if self._closed:
                raise InputError(f"{self.manifest.name}: the module has been closed")
            context = self._idle.pop() if self._idle else None
        return context or SelfContainedContext(self)

    def _give_back(self, context: SelfContainedContext) -> None:
        with self._lock:
            self._idle.append(context)

    def context(self) -> SelfContainedContext:
        return SelfContainedContext(self)

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        context = self.context()
        try:
            return context.profile(inputs, repeats)
        finally:
            context.close()

    @property
    def threads(self) -> int:
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        if count == 0:
            count = min(len(os.sched_getaffinity(0)), MAX_THREADS)
        context = self._borrow()
        try:
            context._take_threads(count)  # the others follow when they next run
        finally:
            self._give_back(context)
        self._threads = count

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            for context in self._idle:
                context.close()
            self._idle.clear()
            self._closed = True
        self._shared.release()

    def __del__(self) -> None:
        # A forgotten module must not keep its library and threads.
        if hasattr(self, "_closed"):
            self.close()

    def _error(self) -> str:
        return self._library.last_error().decode(errors="replace")

    def _check_signature(self) -> None:
        library = self._library
        dims = library.dims[: library.dim_count] if library.abi >= 2 else []
        names = [dim.name.decode() for dim in dims]
        described = [
            [(t.name.decode(), t.dtype.decode(), _shape(t, names)) for t in tensors]
            for tensors in (
                library.inputs[: library.input_count],
                library.outputs[: library.output_count],
            )
        ]
        declared = [
            [(t.name, t.dtype, t.shape) for t in tensors]
            for tensors in (self.manifest.inputs, self.manifest.outputs)
        ]
        bounds = [(name, dim.low, dim.high) for name, dim in zip(names, dims, strict=True)]
        if bounds != [(dim.name, dim.low, dim.high) for dim in self.manifest.dims]:
            described = []
        if described != declared:
            raise ArtifactError(
                f"{self.path}: the manifest does not describe the library; compile the model again"
            )


def _shape(tensor: Any, names: Sequence[str]) -> tuple[int | str, ...]:
    """The shape as a manifest tells it, with the names of open dimensions."""
    extents: list[int | str] = list(tensor.shape[: tensor.ndim])
    for i in range(tensor.ndim if getattr(tensor, "axes", None) else 0):
        axis = tensor.axes[i]
        if axis.dim >= 0:
            name = names[axis.dim]
            extents[i] = name if axis.factor == 1 else f"{axis.factor}*{name}"
    return tuple(extents)
