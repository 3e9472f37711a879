"""A float graph and ways of quantising it, compiled for this machine side by side."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, ObservedModule
from tinsmith.compiler.evaluate.layer_timing import Timing, measure
from tinsmith.compiler.quantization.comparison import Sample
from tinsmith.compiler.quantization.recipe import Prepared
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.spec import TargetSpec


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

    A context manager: it holds the modules, in temporary folders. `spec` describes the machine
    at hand, `name` is that of the model: what is compiled here need not be compiled again.
    `records` and `algorithms` are the decisions with which the model will be compiled: its
    golden vectors come from here.
    """

    def __init__(
        self,
        graph: tvm.IRModule,
        source: CalibrationSource,
        spec: TargetSpec,
        threads: int,
        name: str,
        records: RecordLookup | None = None,
        algorithms: AlgorithmLookup | None = None,
    ) -> None:
        self._records = records
        self._algorithms = algorithms
        self._graph = graph
        self._spec = spec
        self._threads = threads
        self._name = name
        self._tensors = frozenset(node.name for node in Dataflow(graph).nodes)
        self.inputs = tuple(np.array(value) for value in next(iter(source)).values())
        self._candidates: list[Candidate] = []
        self.exact = self._compile(graph)

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
        made = Candidate(prepared, quantized, self._compile(quantized))
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

    def _compile(self, graph: tvm.IRModule) -> ObservedModule:
        return ObservedModule(
            graph, self._spec, [], self._threads, self._name, self._records, self._algorithms
        )
