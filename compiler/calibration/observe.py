"""A float graph compiled so that its inner tensors can be looked at, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.compiler.calibration.source import CalibrationSource
from tinsmith.compiler.errors import InputError, ModelError
from tinsmith.compiler.module.base import Context
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.compiler.pipeline import QUANTIZED_BEFORE, Step
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.expose_tensors import ExposeTensors
from tinsmith.passes.graph.fused_groups import kernel_calls
from tinsmith.passes.progress import Progress
from tinsmith.passes.quantize.observers import ObservationError, Observer, ObserverFactory


@dataclass(frozen=True)
class Observation:
    """One run: the results of `main` in order, and the observed tensors by name.

    The arrays are overwritten by the next run.
    """

    outputs: tuple[np.ndarray, ...]
    tensors: Mapping[str, np.ndarray]


class ObservedModule:
    """A graph compiled for this machine, with tensors of the graph as further outputs.

    Use it as a context manager: it holds a module in a temporary folder. Memory is that of
    one run, whatever the number of runs. `calls` are its kernel calls, in order.
    """

    def __init__(
        self, module: tvm.IRModule, workshop: Workshop, tensors: Sequence[str] = ()
    ) -> None:
        """Compile `module`, a graph after the graph passes, float or quantised.

        `tensors` are names as `tinsmith.passes.graph.dataflow.Dataflow` gives them, parameters
        included.
        Raises ModelError for an unknown name, PassError and BuildError as a compilation does.
        """
        names = tuple(dict.fromkeys(tensors))
        graph = Dataflow(module)
        nodes = {name: graph.named(name) for name in names}
        unknown = [name for name, node in nodes.items() if node is None]
        if unknown:
            raise ModelError(f"the graph has no tensor {unknown[0]} to observe")
        parameters = [node.name for node in graph.nodes if node.value is None]
        parameters = parameters[: len(module["main"].params)]
        self._position = {name: i for i, name in enumerate(parameters)}
        self._computed = tuple(name for name in names if name not in self._position)
        self._names = names
        lowered = _lower(module, self._computed, workshop, parameters)
        self._own = len(lowered.output_names) - len(self._computed)
        self.calls = kernel_calls(lowered.module)
        self._folder = ScratchFolder()
        try:
            written = write_module(
                lowered, self._folder.path / "module", forms=("shared",), builds=workshop.builds
            )
            self._module = load(written.path, threads=workshop.threads)
        except BaseException:
            self._folder.close()
            raise
        self._buffers: list[np.ndarray] | None = None
        self._context: Context | None = None

    def __enter__(self) -> ObservedModule:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the module and remove its folder."""
        if self._context is not None:
            self._context.close()
        self._module.close()
        self._folder.close()

    def run(self, inputs: Sequence[np.ndarray]) -> Observation:
        """Run on arrays in the order of the parameters of `main`."""
        # After the first run its arrays are filled again: no memory is asked for per run.
        self._buffers = self._module.run(list(inputs), self._buffers)
        inner = dict(zip(self._computed, self._buffers[self._own :], strict=True))
        tensors = {
            name: inner[name] if name in inner else inputs[self._position[name]]
            for name in self._names
        }
        return Observation(tuple(self._buffers[: self._own]), tensors)

    def profile(self, inputs: Sequence[np.ndarray]) -> list[float]:
        """Seconds of each of `calls` in one run."""
        if self._context is None:
            self._context = self._module.context()
        return [step.seconds for step in self._context.profile(list(inputs), 1)]

    @property
    def size_bytes(self) -> int:
        """Size of the library and of the weights beside it."""
        return self._module.manifest.deployed_bytes


def observe_tensors(
    module: tvm.IRModule,
    workshop: Workshop,
    tensors: Sequence[str],
    source: CalibrationSource,
    observer: ObserverFactory,
    *,
    progress: Progress | None = None,
) -> dict[str, Observer]:
    """An observer for each of `tensors` that has seen it in a run on each sample of `source`.

    All tensors are observed in one pass over the samples. Raises what `ObservedModule` and
    the source raise, and InputError if a tensor becomes NaN or infinite.
    """
    observers = {name: observer() for name in dict.fromkeys(tensors)}
    if progress is not None:
        progress("compile for calibration", 0.0)
    with ObservedModule(module, workshop, tensors) as observed:
        for index, sample in enumerate(source):
            if progress is not None:
                total = source.count
                share = min(index / total, 1.0) if total else 0.0
                progress(f"calibrate {index + 1}" + (f"/{total}" if total else ""), share)
            observation = observed.run(list(sample.values()))
            for name, array in observation.tensors.items():
                try:
                    observers[name].update(array)
                except ObservationError as error:
                    raise InputError(
                        f"{source.label}: sample {index}: tensor {name}: {error}; is the data "
                        "normalised as the model expects?"
                    ) from error
    return observers


def calibrate(
    module: tvm.IRModule,
    workshop: Workshop,
    tensors: Sequence[str],
    source: CalibrationSource,
    observer: ObserverFactory,
    *,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """The range (low, high) of each of `tensors` over the samples of `source`.

    `module` is the float graph after the graph passes, `tensors` the names that
    `tinsmith.passes.quantize.placement.observed_tensors` lists.
    Errors are those of `observe_tensors`.
    """
    found = observe_tensors(module, workshop, tensors, source, observer, progress=progress)
    return {name: seen.range() for name, seen in found.items()}


def _lower(
    module: tvm.IRModule, tensors: Sequence[str], workshop: Workshop, parameters: Sequence[str]
) -> LoweredModel:
    """The graph with `tensors` as further results and scheduled kernels, by the pipeline."""
    expose = Step("expose_tensors", ExposeTensors(tensors))
    pipeline = workshop.pipeline.since(QUANTIZED_BEFORE).with_step(expose, before=QUANTIZED_BEFORE)
    report = pipeline.run(module)
    results = report.module["main"].ret_ty
    fields = len(results.fields) if isinstance(results, tvm.relax.TupleType) else 1
    return LoweredModel(
        module=report.module,
        spec=workshop.spec,
        input_names=tuple(f"input{i}" for i in range(len(parameters))),
        output_names=tuple(f"output{i}" for i in range(fields)),
        kernels=report.kernels,
        source_name=workshop.name,
    )
