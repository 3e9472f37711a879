"""Inner tensors of a graph that the graph passes have not seen yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm

from tinsmith.compiler.calibration import ObservedModule
from tinsmith.compiler.calibration.source import Sample
from tinsmith.compiler.pipeline import QUANTIZED_BEFORE
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.expose_tensors import ExposeTensors


def compile_graph(module: tvm.IRModule, workshop: Workshop) -> ObservedModule:
    """A graph as it was imported, compiled for this machine with nothing observed."""
    graph = workshop.pipeline.until(QUANTIZED_BEFORE).run(module).module
    return ObservedModule(graph, workshop)


class ObservedGraph:
    """Runs a graph as it was imported, and answers tensors of it by name.

    Unlike `ObservedModule` it takes a graph before the graph passes, whose tensors have the
    model's own layout. What is not needed for `tensors` is not computed. A context
    manager: it holds a module in a temporary folder.
    """

    def __init__(self, module: tvm.IRModule, workshop: Workshop, tensors: Sequence[str]) -> None:
        """`tensors` are names as `Dataflow` gives them, parameters included.

        Raises what `ObservedModule` raises.
        """
        parameters = [node.name for node in Dataflow(module).nodes[: len(module["main"].params)]]
        self._position = {name: i for i, name in enumerate(parameters)}
        names = tuple(dict.fromkeys(tensors))
        self._given = tuple(name for name in names if name in self._position)
        self._computed = tuple(name for name in names if name not in self._position)
        self._module: ObservedModule | None = None
        if self._computed:
            expose: tvm.transform.Pass = ExposeTensors(self._computed, only=True)
            self._module = compile_graph(expose(module), workshop)

    def __enter__(self) -> ObservedGraph:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._module is not None:
            self._module.close()

    def run(self, sample: Sample) -> Mapping[str, np.ndarray]:
        """The tensors for one sample. The next run overwrites the arrays."""
        inputs = list(sample.values())
        found = {name: inputs[self._position[name]] for name in self._given}
        if self._module is not None:
            outputs = self._module.run(inputs).outputs
            found.update(zip(self._computed, outputs, strict=True))
        return found
