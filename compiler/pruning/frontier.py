"""Tensors of a graph on all samples, computed part by part while later weights still change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import static_shape
from tinsmith.passes.prune.recovery.segment import between, segment

# Arrays of so many bytes stay in memory, further ones go to files.
_ROOM = 1 << 30


class Arrays:
    """Keeps copies of arrays: in memory while there is room, then in a temporary folder.

    A context manager: the folder goes when it ends.
    """

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._files = 0
        self._folder: ScratchFolder | None = None

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.close()

    def kept(self, array: np.ndarray) -> np.ndarray:
        """A copy of an array."""
        if array.nbytes <= self._room or array.size == 0:
            self._room -= array.nbytes
            return np.array(array)
        if self._folder is None:
            self._folder = ScratchFolder()
        self._files += 1
        path = self._folder.path / f"{self._files}.bin"
        copy = np.memmap(path, array.dtype, "w+", shape=array.shape)
        copy[...] = array
        return copy

    def dropped(self, array: np.ndarray) -> None:
        """What `kept` answered is not needed any more."""
        if isinstance(array, np.memmap) and isinstance(array.filename, str | Path):
            Path(array.filename).unlink(missing_ok=True)
        else:
            self._room += array.nbytes


class Frontier:
    """Runs a graph on the samples of a source as far as it is asked to, once for each part.

    Only what the rest of the graph reads is kept, for all samples. Between two calls of
    `advance` weights may be replaced in what was not computed yet.
    """

    def __init__(self, source: CalibrationSource, workshop: Workshop, arrays: Arrays) -> None:
        self._source = source
        self._workshop = workshop
        self._store = arrays
        self._done: set[str] = set()
        self._samples: list[dict[str, np.ndarray]] = []

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The tensors that were asked for last, and others, of each sample."""
        return iter(self._samples)

    def advance(self, module: tvm.IRModule, wanted: Sequence[str]) -> None:
        """Compute the tensors `wanted` of `module`, by the names of `Dataflow`.

        Raises ValueError for a name that no tensor has, and what compiling raises.
        """
        graph = Dataflow(module)
        parameters = [node.name for node in graph.nodes[: len(module["main"].params)]]
        if not self._done:
            self._done.update(parameters)
            for sample in self._source:
                values = zip(parameters, sample.values(), strict=True)
                self._samples.append({n: self._store.kept(array) for n, array in values})
        known = set(self._samples[0])
        end = [node for node in graph.nodes if node.name in set(wanted)]
        if len(end) != len(set(wanted)):
            raise ValueError(f"no tensor of `main` is named {sorted(set(wanted))}")
        begin = [node for node in graph.nodes if node.name in known]
        added = between(graph, begin, end)
        done = self._with_parts(graph, self._done | {node.name for node in added})
        live = [
            node.name
            for node in graph.nodes
            if node.name in done
            and static_shape(node.variable) is not None
            and (node in end or any(reader.name not in done for reader in node.readers))
        ]
        missing = [name for name in live if name not in known]
        if missing:
            self._compute(module, graph, begin, missing)
        for sample in self._samples:
            for name in set(sample).difference(live):
                self._store.dropped(sample.pop(name))
        self._done = done

    @staticmethod
    def _with_parts(graph: Dataflow, done: set[str]) -> set[str]:
        """With the elements of tuples, which are no arrays that could be kept."""
        for node in graph.nodes:
            if node.name in done and static_shape(node.variable) is None:
                done.update(
                    reader.name
                    for reader in node.readers
                    if all(operand.name in done for operand in reader.operands)
                )
        return done

    def _compute(
        self, module: tvm.IRModule, graph: Dataflow, begin: Sequence[Node], missing: Sequence[str]
    ) -> None:
        end = [node for node in graph.nodes if node.name in set(missing)]
        needed = between(graph, begin, end)
        read = {operand for node in needed for operand in node.operands}
        given = [node.name for node in begin if node in read]
        names = [node.name for node in end]
        part = segment(module, given, names)
        with compile_graph(part, self._workshop) as compiled:
            for sample in self._samples:
                found = compiled.run([sample[name] for name in given]).outputs
                for name, array in zip(names, found, strict=True):
                    sample[name] = self._store.kept(array)
