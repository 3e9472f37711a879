"""A float graph and ways of quantising it, compiled for this machine side by side."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, ObservedModule
from tinsmith.compiler.evaluate.layer_timing import Timing, measure
from tinsmith.compiler.quantization.comparison import Sample
from tinsmith.compiler.quantization.recipe import Prepared
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow


class Candidate:
    """One way of quantising, compiled without observers as it will be deployed.

    Observing a tensor ends a fused kernel, which costs time, and rounds a product that is added
    to something: time and golden vectors need a run without.
    """

    def __init__(self, prepared: Prepared, quantized: tvm.IRModule, module: ObservedModule) -> None:
        self.prepared = prepared
        self.quantized = quantized
        self.module = module


class Workbench:
    """Compiles `graph` as it is and as candidates, and times them on the first sample.

    A context manager: it holds the modules, in temporary folders. The golden vectors of the
    module come from here.
    """

    def __init__(self, graph: tvm.IRModule, source: CalibrationSource, workshop: Workshop) -> None:
        self._graph = graph
        self.workshop = workshop
        self._tensors = frozenset(node.name for node in Dataflow(graph).nodes)
        self.inputs = tuple(np.array(value) for value in next(iter(source)).values())
        self._candidates: list[Candidate] = []
        self.exact = ObservedModule(graph, workshop)

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for candidate in self._candidates:
            candidate.module.close()
        self.exact.close()

    def candidate(self, prepared: Prepared) -> Candidate:
        """Quantise and compile."""
        quantized = prepared.quantized(self._graph)
        made = Candidate(prepared, quantized, ObservedModule(quantized, self.workshop))
        self._candidates.append(made)
        return made

    def discard(self, candidate: Candidate) -> None:
        """Unload a candidate that was not chosen."""
        self._candidates.remove(candidate)
        candidate.module.close()

    def measure(self, *candidates: Candidate) -> tuple[Timing, ...]:
        """Timings of the float graph and of the candidates, by the layers of their reports."""
        layers = {layer.name for made in candidates for layer in made.prepared.layers}
        modules = [self.exact, *(made.module for made in candidates)]
        return measure(modules, layers, self._tensors, self.inputs)

    def sample(self, candidate: Candidate) -> Sample:
        """The first sample with the outputs of a candidate."""
        outputs = candidate.module.run(self.inputs).outputs
        return Sample(self.inputs, tuple(value.copy() for value in outputs))
