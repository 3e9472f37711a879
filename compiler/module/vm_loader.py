"""Running a module in the VM form. The only part of loading that needs TVM."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import ArtifactError, InputError, TinsmithError
from tinsmith.compiler.module.base import Context, Module, StepTime
from tinsmith.compiler.module.manifest import Manifest
from tinsmith.compiler.module.module_file import open_checked
from tinsmith.compiler.module.signature import Inputs, Outputs
from tinsmith.compiler.module.vm_functions import call_label, register, running
from tinsmith.compiler.module.vm_tensors import array_of, tensor_of
from tinsmith.compiler.processes import lock_that_forks_open

LIBRARY_NAME = "model_vm.so"


class _Stopwatch:
    """Times the calls of a virtual machine, without those that run inside of them."""

    def __init__(self) -> None:
        self._begun: list[tuple[float, float]] = []
        self._times: list[tuple[str, float]] = []

    def __call__(
        self, _function: Any, symbol: str, before: bool, _result: Any, *arguments: Any
    ) -> int:
        now = time.perf_counter()
        if before:
            # The seconds of the calls inside are gathered beside the moment of the beginning.
            self._begun.append((now, 0.0))
            return 0
        begin, inside = self._begun.pop()
        if self._begun:
            outer, gathered = self._begun[-1]
            self._begun[-1] = (outer, gathered + now - begin)
        if not symbol.startswith("vm.builtin."):
            self._times.append((call_label(symbol, arguments), now - begin - inside))
        return 0

    def collect(self) -> list[tuple[str, float]]:
        """Name and seconds of each call since the last time, in order of their ends."""
        times, self._times = self._times, []
        return times


class VirtualMachineContext(Context):
    """A Relax virtual machine of its own."""

    def __init__(self, module: VirtualMachineModule) -> None:
        super().__init__(module._signature)
        self._module = module
        self._machine: Any = module.machine()
        self._lock = lock_that_forks_open()

    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        arrays = self._signature.checked(inputs, strict)
        if outputs is not None:
            self._signature.destinations(outputs)  # told before the work rather than after it
        try:
            with self._lock, running(self._machine):
                result = self._machine["main"](*(tensor_of(array) for array in arrays))
        except (RuntimeError, ValueError, TypeError) as error:
            detail = str(error).strip().splitlines()[-1]
            raise TinsmithError(f"{self._module.manifest.name}: {detail}") from error
        single = isinstance(result, self._module._tvm.runtime.Tensor)
        # Kept by the caller, who may write into them: a result can be an input or a constant.
        results = [np.array(array_of(part)) for part in ([result] if single else result)]
        return self._signature.delivered(results, outputs)

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        arrays = self._signature.checked(inputs)
        tensors = [tensor_of(array) for array in arrays]
        # An instrument cannot be taken off again: it gets a machine of its own.
        machine = self._module.machine()
        watch = _Stopwatch()
        machine.set_instrument(watch)
        runs: list[list[tuple[str, float]]] = []
        with self._lock, running(machine):
            for _ in range(max(repeats, 1)):
                machine["main"](*tensors)
                runs.append(watch.collect())
        return [
            StepTime(index, calls[0][0], float(np.median([seconds for _, seconds in calls])))
            for index, calls in enumerate(zip(*runs, strict=False))
        ]

    def close(self) -> None:
        self._machine = None


class VirtualMachineModule(Module):
    """A Relax executable; runs are serialised."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        try:
            import tvm
            from tvm import relax
        except ImportError as error:
            raise ArtifactError(
                f"{path}: is in the VM form ({manifest.vm_reason}) and needs TVM: "
                "pip install 'tinsmith-runtime[vm]'"
            ) from error
        register()
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

    def machine(self) -> Any:
        """A new virtual machine."""
        return self._relax.VirtualMachine(self._executable, self._tvm.cpu())

    def run(
        self, inputs: Inputs, outputs: Outputs | None = None, *, strict: bool = False
    ) -> list[Any]:
        return self._shared.run(inputs, outputs, strict=strict)

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
