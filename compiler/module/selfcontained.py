"""Running a self-contained module through its C interface."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compiler.errors import ArtifactError, InputError, TinsmithError
from compiler.module.base import Context, Module, StepTime
from compiler.module.cinterface import ModuleStruct
from compiler.module.manifest import Manifest
from compiler.module.shared_library import SharedLibrary
from compiler.module.signature import Inputs


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
        self._lock = threading.Lock()

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        arrays = self._signature.checked(inputs)
        results = self._signature.results(outputs)
        with self._lock:
            library = self._bind(arrays, results)
            if library.run(self._handle, self._inputs, self._outputs):
                raise TinsmithError(f"{self._module.manifest.name}: {self._module._error()}")
        return results

    def profile(
        self, inputs: Inputs, repeats: int = 10, outputs: Sequence[np.ndarray] | None = None
    ) -> list[StepTime]:
        """As `Module.profile`, on this context; `outputs` are arrays to fill, which may overlap."""
        arrays = self._signature.checked(inputs)
        results = self._signature.results(outputs)
        with self._lock:
            library = self._bind(arrays, results)
            count = library.step_count
            seconds = (ctypes.c_double * max(count, 1))()
            samples = np.empty((max(repeats, 1), count))
            for row in samples:
                if library.profile(self._handle, self._inputs, self._outputs, seconds):
                    raise TinsmithError(f"{self._module.manifest.name}: {self._module._error()}")
                row[:] = seconds[:count]
            names = [library.step_names[i].decode() for i in range(count)]
        pairs = zip(names, np.median(samples, axis=0), strict=True)
        return [StepTime(i, name, float(time)) for i, (name, time) in enumerate(pairs)]

    def _bind(self, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> ModuleStruct:
        if not self._handle or self._module._closed:
            raise InputError(f"{self._module.manifest.name}: the module has been closed")
        for i, array in enumerate(arrays):
            self._inputs[i] = array.ctypes.data
        for i, array in enumerate(results):
            self._outputs[i] = array.ctypes.data
        return self._module._library

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

    def __init__(self, path: Path, manifest: Manifest, descriptor: int) -> None:
        """`descriptor` is the open `model.so`; it belongs to the module from now on."""
        super().__init__(path, manifest)
        self._shared = SharedLibrary.acquire(path, descriptor)
        self._library = self._shared.interface
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[SelfContainedContext] = []
        try:
            self._check_signature()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        with self._lock:
            if self._closed:
                raise InputError(f"{self.manifest.name}: the module has been closed")
            context = self._idle.pop() if self._idle else None
        context = context or SelfContainedContext(self)
        try:
            return context.run(inputs, outputs)
        finally:
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
        return int(self._library.threads())

    @threads.setter
    def threads(self, count: int) -> None:
        if self._library.set_threads(count):
            raise InputError(f"threads={count}: {self._error()}")

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
        described = [
            [(t.name.decode(), t.dtype.decode(), tuple(t.shape[: t.ndim])) for t in tensors]
            for tensors in (
                library.inputs[: library.input_count],
                library.outputs[: library.output_count],
            )
        ]
        declared = [
            [(t.name, t.dtype, t.shape) for t in tensors]
            for tensors in (self.manifest.inputs, self.manifest.outputs)
        ]
        if described != declared:
            raise ArtifactError(
                f"{self.path}: the manifest does not describe the library; compile the model again"
            )
