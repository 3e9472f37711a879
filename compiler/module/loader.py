"""Loading and running compiled modules. Needs numpy and blake3; TVM only for the VM form."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.errors import ArtifactError, InputError, TinsmithError
from compiler.module.cinterface import ABI, ModuleStruct
from compiler.module.golden import FILE_NAME as GOLDEN_NAME
from compiler.module.golden import GoldenVectors, read_golden
from compiler.module.machine import check_machine
from compiler.module.manifest import Manifest, TensorEntry, digest_bytes, read_manifest

Inputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]
# Needed to run; the other files are checked by `verify_files`.
_LOADED_FILES = ("model.so", "weights.bin")


@dataclass(frozen=True)
class StepTime:
    """Time of one step: its position, its kernel, and the median seconds of a run of it."""

    index: int
    kernel: str
    seconds: float


class RunnableContext(Protocol):
    """Memory of one run at a time: what both forms of module offer."""

    def run(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray] | None
    ) -> list[np.ndarray]:
        """Run on checked inputs; fills `outputs` or new arrays."""


def numpy_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that carries a tensor; bfloat16 travels as uint16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class Context:
    """An arena of its own, for one run at a time. Made by `Module.context()`."""

    def __init__(self, module: Module) -> None:
        self._module = module
        library = module._library
        self._handle = library.create()
        if not self._handle:
            raise TinsmithError(f"{module.manifest.name}: {module._error()}")
        self._inputs = (ctypes.c_void_p * len(module.manifest.inputs))()
        self._outputs = (ctypes.c_void_p * len(module.manifest.outputs))()
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, np.ndarray]:
        """As `Module.__call__`, on this context."""
        return self._module._named(self.run(self._module._gather(inputs, named)))

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """As `Module.run`, on this context."""
        module = self._module
        arrays = module._checked(inputs)
        results = module._results(outputs)
        with self._lock:
            self._bind(arrays, results)
            if module._library.run(self._handle, self._inputs, self._outputs):
                raise TinsmithError(f"{module.manifest.name}: {module._error()}")
        return results

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """Run `repeats` times; the median time of each step, in order of execution."""
        module = self._module
        arrays = module._checked(inputs)
        results = module._results(None)
        count = module._library.step_count
        seconds = (ctypes.c_double * max(count, 1))()
        samples = np.empty((max(repeats, 1), count))
        with self._lock:
            self._bind(arrays, results)
            for row in samples:
                status = module._library.profile(self._handle, self._inputs, self._outputs, seconds)
                if status:
                    raise TinsmithError(f"{module.manifest.name}: {module._error()}")
                row[:] = seconds[:count]
        medians = np.median(samples, axis=0)
        names = [module._library.step_names[i].decode() for i in range(count)]
        return [
            StepTime(i, n, float(t)) for i, (n, t) in enumerate(zip(names, medians, strict=True))
        ]

    def _bind(self, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        for i, array in enumerate(arrays):
            self._inputs[i] = array.__array_interface__["data"][0]
        for i, array in enumerate(results):
            self._outputs[i] = array.__array_interface__["data"][0]

    def close(self) -> None:
        """Release the arena; the context cannot be used any more."""
        with self._lock:
            if self._handle:
                self._module._library.destroy(self._handle)
                self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and not self._module._closed:
            self.close()


class Module:
    """A compiled model, ready to run.

    `module(x)` or `module(name=x)` returns a dict from output names to new
    numpy arrays; `module.run([x])` returns them as a list. Inputs must have the
    declared dtype and shape and be C-contiguous: they are read in place. The
    interpreter is released while kernels run; any number of threads may call
    one module at the same time.
    """

    def __init__(self, path: Path, manifest: Manifest, descriptor: int) -> None:
        self.path = path
        self.manifest = manifest
        self._descriptor = descriptor
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[Context] = []
        # The descriptor stays open: its number makes the name unique, and the dynamic linker
        # would otherwise hand out an older library that was loaded from the same path.
        self._handle = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=os.RTLD_LOCAL | os.RTLD_NOW)
        entry = getattr(self._handle, manifest.entry)
        entry.restype = ctypes.POINTER(ModuleStruct)
        self._library: ModuleStruct = entry().contents
        if self._library.abi != ABI:
            raise ArtifactError(
                f"{path}: runtime interface {self._library.abi}, this Tinsmith needs {ABI}; "
                "compile the model again"
            )
        self._check_signature()
        if self._library.open(os.fsencode(path / "weights.bin")):
            raise ArtifactError(f"{path}: {self._error()}")
        self._input_types = _types(manifest.inputs)
        self._output_types = _types(manifest.outputs)
        self._input_index = {tensor.name: i for i, tensor in enumerate(manifest.inputs)}

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, np.ndarray]:
        """Run on arrays given in order, by keyword, or as one dict; outputs by name.

        Raises `InputError` when an input is missing, unknown, or not as declared.
        """
        return self._named(self.run(self._gather(inputs, named)))

    def run(self, inputs: Inputs, outputs: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Run on `inputs` (a sequence, or a dict by name); outputs in declared order.

        `outputs` are arrays to fill, of the declared dtype and shape; they must
        not overlap the inputs. Without them new ones are made.
        """
        with self._lock:
            context = self._idle.pop() if self._idle else None
        context = context or Context(self)
        try:
            return context.run(inputs, outputs)
        finally:
            with self._lock:
                self._idle.append(context)

    def context(self) -> Context:
        """A context of its own, with its own arena."""
        return Context(self)

    def profile(self, inputs: Inputs, repeats: int = 10) -> list[StepTime]:
        """Median time of each step over `repeats` runs, in order of execution."""
        return self.context().profile(inputs, repeats)

    @property
    def threads(self) -> int:
        """Number of threads that share a parallel loop, the caller included."""
        return int(self._library.threads())

    @threads.setter
    def threads(self, count: int) -> None:
        if self._library.set_threads(count):
            raise InputError(f"threads={count}: {self._error()}")

    def golden(self) -> GoldenVectors | None:
        """The golden vectors that were stored with the module, if any."""
        if GOLDEN_NAME not in self.manifest.files:
            return None
        return read_golden(self.path / GOLDEN_NAME, self._input_types, self._output_types)

    def close(self) -> None:
        """Stop the threads and unload the library. The module cannot be used any more."""
        with self._lock:
            if self._closed:
                return
            for context in self._idle:
                context.close()
            self._idle.clear()
            self._closed = True
        self._library.close()
        handle = self._handle._handle
        del self._library
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(handle))
        os.close(self._descriptor)

    def __del__(self) -> None:
        # A library that stayed loaded under its descriptor's name would be handed out for the
        # next file that gets the number.
        if hasattr(self, "_library"):
            self.close()

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *exception: object) -> None:
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

    def _gather(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Inputs:
        if named and inputs:
            raise InputError("give the inputs either in order or by name, not both")
        if named:
            return named
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return inputs[0]
        return inputs

    def _named(self, results: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {t.name: r for t, r in zip(self.manifest.outputs, results, strict=True)}

    def _checked(self, inputs: Inputs) -> list[np.ndarray]:
        if self._closed:
            raise InputError(f"{self.manifest.name}: the module has been closed")
        arrays = list(self._in_order(inputs))
        for tensor, (dtype, shape), array in zip(
            self.manifest.inputs, self._input_types, arrays, strict=True
        ):
            _check_array(f"input {tensor.name!r}", array, dtype, shape)
        return arrays

    def _in_order(self, inputs: Inputs) -> Iterator[np.ndarray]:
        declared = self.manifest.inputs
        if isinstance(inputs, Mapping):
            unknown = sorted(set(inputs) - set(self._input_index))
            missing = [t.name for t in declared if t.name not in inputs]
            if unknown or missing:
                problem = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
                names = ", ".join(t.name for t in declared)
                raise InputError(f"{self.manifest.name}: {problem}; the inputs are: {names}")
            return (inputs[t.name] for t in declared)
        if not isinstance(inputs, list | tuple):
            raise InputError(
                f"{self.manifest.name}: expected a list or a dict of arrays, "
                f"got {type(inputs).__name__}"
            )
        if len(inputs) != len(declared):
            raise InputError(
                f"{self.manifest.name}: takes {len(declared)} inputs, {len(inputs)} were given"
            )
        return iter(inputs)

    def _results(self, outputs: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        if outputs is None:
            return [np.empty(shape, dtype) for dtype, shape in self._output_types]
        if len(outputs) != len(self._output_types):
            raise InputError(
                f"{self.manifest.name}: has {len(self._output_types)} outputs, "
                f"{len(outputs)} arrays were given"
            )
        for tensor, (dtype, shape), array in zip(
            self.manifest.outputs, self._output_types, outputs, strict=True
        ):
            _check_array(f"output {tensor.name!r}", array, dtype, shape)
            if not array.flags.writeable:
                raise InputError(f"output {tensor.name!r}: the array is read-only")
        return list(outputs)


def load(path: str | os.PathLike[str], threads: int = 0) -> Module:
    """Load the compiled module in the folder `path`.

    `threads` share each parallel loop (0: as many as the process may use).
    Before any code is loaded, the manifest's format, the CPU's features and the
    digests of code and weights are checked. Raises `ArtifactError` when the
    module is damaged, of another format, or for another machine.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_machine(str(folder), manifest.target)
    if manifest.form == "vm":
        from compiler.module.vm_loader import load_vm_module

        return load_vm_module(folder, manifest)
    if not manifest.entry.isidentifier():
        raise ArtifactError(f"{folder}: damaged manifest (entry point); compile the model again")
    descriptor = -1
    try:
        for name in _LOADED_FILES:
            if name in manifest.files:
                opened = _open_checked(folder / name, manifest)
                if name == "model.so":
                    descriptor = opened
                else:
                    os.close(opened)
        if descriptor < 0:
            raise ArtifactError(f"{folder}: the manifest lists no model.so; compile it again")
        module = Module(folder, manifest, descriptor)
    except BaseException as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, OSError | AttributeError):
            raise ArtifactError(f"{folder}: model.so cannot be loaded: {error}") from error
        raise
    try:
        module.threads = threads
    except TinsmithError:
        module.close()
        raise
    return module


def verify_files(path: str | os.PathLike[str]) -> Manifest:
    """Check the digests of all files of a module.

    Raises `ArtifactError` for the first that differs.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name in manifest.files:
        os.close(_open_checked(folder / name, manifest))
    return manifest


def _open_checked(path: Path, manifest: Manifest) -> int:
    """Open a file and compare it with the manifest; returns the descriptor."""
    expected = manifest.files[path.name]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; the module is incomplete, compile the model again"
        ) from error
    size = os.fstat(descriptor).st_size
    matches = size == expected.bytes
    if matches and size:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as content:
            matches = digest_bytes(content) == expected
    if not matches:
        os.close(descriptor)
        raise ArtifactError(
            f"{path}: does not match its digest in the manifest; the file was changed or damaged, "
            "compile the model again"
        )
    return descriptor


def _types(tensors: Sequence[TensorEntry]) -> list[tuple[np.dtype, tuple[int, ...]]]:
    return [(numpy_dtype(t.dtype), tuple(int(extent) for extent in t.shape)) for t in tensors]


def _check_array(what: str, array: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what}: expected a numpy array, got {type(array).__name__}")
    if array.dtype != dtype:
        raise InputError(f"{what}: expected dtype {dtype}, got {array.dtype}; convert it first")
    if array.shape != shape:
        raise InputError(f"{what}: expected shape {shape}, got {array.shape}")
    if not array.flags.c_contiguous:
        raise InputError(f"{what}: the array is not contiguous; use numpy.ascontiguousarray")
