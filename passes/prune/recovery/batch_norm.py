"""Statistics of batch normalisations, measured anew on what a pruned graph computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import constant_array

# Positions of the mean and of the variance among the operands.
_MEAN, _VARIANCE = 3, 4


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation of `data`, whose channels lie along `axis`; `name` is its result."""

    name: str
    data: str
    axis: int


def find_batch_norms(module: tvm.IRModule) -> tuple[BatchNorm, ...]:
    """The batch normalisations of `main` with constant statistics, in order."""
    graph = Dataflow(module)
    found = []
    for node in graph.nodes:
        if node.operator == "relax.nn.batch_norm":
            call: Any = node.value
            source = graph.node(call.args[0])
            statistics = [constant_array(call.args[i]) for i in (_MEAN, _VARIANCE)]
            if source is not None and all(array is not None for array in statistics):
                found.append(BatchNorm(node.name, source.name, int(call.attrs.axis)))
    return tuple(found)


class ChannelStatistics:
    """Mean and variance of each channel over arrays shown one by one, in constant memory.

    Two samples are joined by the formula of Chan et al. 1979, which does not cancel. Source of
    the re-estimation: Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural
    Network Pruning", section 3.3 (arXiv:2007.02491).
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._count = 0
        self._mean: np.ndarray | None = None
        self._squares: np.ndarray | None = None

    def update(self, array: np.ndarray) -> None:
        """Take the values of one array into account."""
        others = tuple(i for i in range(array.ndim) if i != self._axis % array.ndim)
        mean = array.mean(others, dtype=np.float64)
        count = array.size // mean.size
        squares = array.var(others, dtype=np.float64) * count
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        delta = mean - self._mean
        self._squares = self._squares + squares + delta**2 * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count = total

    def operands(self, norm: BatchNorm) -> dict[tuple[str, int], np.ndarray]:
        """The new constants of a batch normalisation, for `ReplaceOperands`; float32 `[channels]`.

        Raises ValueError if nothing was observed.
        """
        if self._mean is None or self._squares is None:
            raise ValueError("no sample was observed")
        variance = self._squares / self._count
        return {
            (norm.name, _MEAN): self._mean.astype(np.float32),
            (norm.name, _VARIANCE): variance.astype(np.float32),
        }
