"""Running a module in the VM form. The only part of loading that needs TVM."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compiler.errors import ArtifactError, InputError, TinsmithError
from compiler.module.base import Context, Module, StepTime
from compiler.module.manifest import Manifest
from compiler.module.module_file import open_checked
from compiler.module.signature import Inputs
from compiler.processes import lock_that_forks_open

LIBRARY_NAME = "model_vm.so"


class VirtualMachineContext(Context):
    """A Relax virtual machine of its own."""

    def __init__(self, module: VirtualMachineModule) -> None:
        super().__init__(module._signature)
        self._module = module
        self._machine = module._relax.VirtualMachine(module._executable, module._tvm.cpu())
        self._lock = lock_that_forks_open()

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        arrays = self._signature.checked(inputs)
        tensor = self._module._tvm.runtime.tensor
        try:
            with self._lock:
                result = self._machine["main"](*(tensor(array) for array in arrays))
        except (RuntimeError, ValueError, TypeError) as error:
            detail = str(error).strip().splitlines()[-1]
            raise TinsmithError(f"{self._module.manifest.name}: {detail}") from error
        single = isinstance(result, self._module._tvm.runtime.Tensor)
        results = [part.numpy() for part in ([result] if single else result)]
        if outputs is None:
            return results
        if len(outputs) != len(results):
            raise InputError(f"{len(results)} outputs, {len(outputs)} arrays were given")
        for given, computed in zip(outputs, results, strict=True):
            if given.shape != computed.shape or given.dtype != computed.dtype:
                raise InputError(f"an output has shape {computed.shape}, dtype {computed.dtype}")
            np.copyto(given, computed)
        return list(outputs)

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        times = []
        for _ in range(max(repeats, 1)):
            begin = time.perf_counter()
            self.run(inputs)
            times.append(time.perf_counter() - begin)
        return [StepTime(0, "main", float(np.median(times)))]

    def close(self) -> None:
        self._machine = None


class VirtualMachineModule(Module):
    """A Relax executable; runs are serialised, `profile` sees the model as one step."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        try:
            import tvm
            from tvm import relax
        except ImportError as error:
            raise ArtifactError(
                f"{path}: is in the VM form ({manifest.vm_reason}) and needs TVM: "
                "pip install apache-tvm"
            ) from error
        self._tvm = tvm
        self._relax = relax
        # Open as long as the library is loaded, so that no other has its name meanwhile.
        descriptor = open_checked(path / LIBRARY_NAME, manifest)
        weakref.finalize(self, os.close, descriptor)
        try:
            load_library = tvm.get_global_func("ffi.Module.load_from_file.so")
            self._executable = load_library(f"/proc/self/fd/{descriptor}", "so")
        except (RuntimeError, ValueError) as error:
            detail = str(error).strip().splitlines()[-1]
            raise ArtifactError(f"{path}: {LIBRARY_NAME} cannot be loaded: {detail}") from error
        try:
            self._shared = VirtualMachineContext(self)
        except AttributeError as error:
            raise ArtifactError(
                f"{path}: {LIBRARY_NAME} holds no executable; the model has nothing to compute"
            ) from error
        self._threads = 0

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        return self._shared.run(inputs, outputs)

    def context(self) -> VirtualMachineContext:
        return VirtualMachineContext(self)

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        return self._shared.profile(inputs, repeats)

    @property
    def threads(self) -> int:
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        if count < 0:
            raise InputError(f"threads={count}: the number of threads is out of range")
        self._threads = count or len(os.sched_getaffinity(0))
        configure = self._tvm.get_global_func("runtime.config_threadpool", allow_missing=True)
        if configure is not None:
            configure(1, self._threads)

    def close(self) -> None:
        self._shared.close()
