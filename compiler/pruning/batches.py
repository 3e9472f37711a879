"""Samples in batches for PyTorch, and graphs that take them (needs torch, which is an extra)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.passes.prune.recovery.distillation import Batch

if TYPE_CHECKING:
    from tinsmith.passes.prune.autograd.graph import TorchGraph

BATCH = 64
# Samples that are kept in memory, in bytes; of more, so many are shuffled at a time.
_MEMORY = 1 << 30

# Its number, what the model takes, the class of each row, and whether it looks the same each time.
Sample = tuple[int, tuple[np.ndarray, ...], "np.ndarray | None", "int | None"]


def require_torch(what: str) -> None:
    """Raise ConfigError if the extra is missing that `what` needs."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{what} needs PyTorch: pip install 'tinsmith[torch]'")


def torch_graph(module: tvm.IRModule, samples: Batch, instead: str) -> TorchGraph:
    """The graph in PyTorch; whether samples can be run together is tried on two of `samples`.

    Raises ModelError for an operator without a counterpart, which advises `instead`.
    """
    from tinsmith.passes.prune.autograd.graph import TorchGraph

    try:
        graph = TorchGraph(module)
    except ValueError as error:
        raise ModelError(f"gradients cannot be computed: {error}; choose {instead}") from error
    rows = graph.batch
    graph.find_joint([[a[i * rows : (i + 1) * rows] for a in samples.inputs] for i in range(2)])
    return graph


class Samples:
    """The samples of a source by number; kept in memory if they fit."""

    def __init__(self, source: CalibrationSource, labels: np.ndarray | None) -> None:
        self._source = source
        self._labels = labels
        self._kept: list[Sample] | None = None
        size = sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize
            for shape, dtype in source.signature.values()
        )
        self._room = max(BATCH, _MEMORY // max(size, 1))
        self.count = 0

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Sample] = []
        count = 0
        for count, sample in enumerate(self._source, 1):
            arrays = tuple(np.array(array) for array in sample.values())
            rows = len(arrays[0]) if arrays[0].ndim else 1
            labels = self._labels
            own = None if labels is None else labels[(count - 1) * rows : count * rows]
            found = (count - 1, arrays, own, 2 * (count - 1))
            if len(kept) < self._room:
                kept.append(found)
            yield found
        self.count = count
        if count == len(kept):
            self._kept = kept

    def shuffled(self, generator: np.random.Generator) -> Iterator[Sample]:
        """All samples; in random order among as many as there is room for."""
        waiting: list[Sample] = []
        for sample in self:
            waiting.append(sample)
            if len(waiting) > self._room:
                chosen = int(generator.integers(len(waiting)))
                waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
                yield waiting.pop()
        for index in generator.permutation(len(waiting)):
            yield waiting[index]


def parts(samples: Iterable[Sample], size: int = BATCH) -> Iterator[list[Sample]]:
    """The samples by so many; the last part may be shorter."""
    part: list[Sample] = []
    for sample in samples:
        part.append(sample)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def batch_of(samples: list[Sample]) -> Batch:
    """The samples behind each other."""
    inputs = zip(*(arrays for _, arrays, _, _ in samples), strict=True)
    labels = [own for _, _, own, _ in samples if own is not None]
    keys = [key for *_, key in samples if key is not None]
    return Batch(
        tuple(np.concatenate(arrays) for arrays in inputs),
        np.concatenate(labels) if labels else None,
        tuple(keys) if len(keys) == len(samples) else None,
    )
