"""The outputs of a model: which one chooses a class, and what rounding does to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tinsmith.compiler.quantization.noise import SignalToNoise
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import element_type, static_shape


@dataclass(frozen=True)
class ClassOutput:
    """The output at `position` chooses one of `count` classes for each row.

    It holds rows of scores, or the classes themselves: `count` is None then.
    """

    position: int
    count: int | None

    def chosen(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """The class of each row, int64 (rows,)."""
        array = outputs[self.position]
        classes = array.reshape(-1) if self.count is None else array.argmax(1)
        return classes.astype(np.int64)


def class_output(graph: tvm.IRModule) -> ClassOutput | None:
    """The first output of `main` that is a row of scores, (N, classes) of floats.

    Without one, the first that holds a class for each row: integers (N,) or (N, 1). What is
    returned as it was given (inputs, constants) chooses nothing. None if there is neither.
    """
    found = None
    for position, result in enumerate(_results(graph)):
        shape, dtype = static_shape(result), str(element_type(result))
        if shape is None or not _is_computed(graph, result):
            continue
        if len(shape) == 2 and shape[1] > 1 and dtype.startswith(("float", "bfloat")):
            return ClassOutput(position, shape[1])
        if found is None and shape[1:] in ((), (1,)) and shape and dtype in ("int32", "int64"):
            found = ClassOutput(position, None)
    return found


def described(graph: tvm.IRModule) -> str:
    """Dtypes and shapes of the outputs, for messages: `float32 (1, 8, 32, 32), int64 (1,)`."""
    return ", ".join(f"{element_type(r)} {static_shape(r) or '(?)'}" for r in _results(graph))


class OutputNoise:
    """Accumulates signal and noise of all outputs of floats over samples.

    Integers and booleans are not rounded, and count only where there is nothing else.
    """

    def __init__(self) -> None:
        self._noise: dict[int, SignalToNoise] = {}

    def update(self, exact: Sequence[np.ndarray], approximate: Sequence[np.ndarray]) -> None:
        """Add one sample: the outputs as they should be, and as they are."""
        floats = [i for i, array in enumerate(exact) if array.dtype.kind not in "biu"]
        for index in floats or range(len(exact)):
            seen = self._noise.setdefault(index, SignalToNoise())
            seen.update(exact[index], approximate[index])

    @property
    def worst(self) -> SignalToNoise:
        """That of the output which lost most."""
        return min(self._noise.values(), key=lambda seen: seen.decibels, default=SignalToNoise())


def _results(graph: tvm.IRModule) -> list[relax.Expr]:
    """The expressions that `main` returns, one for each output."""
    result = graph["main"].body.body
    bound = Dataflow(graph).node(result)
    if bound is not None and isinstance(bound.value, relax.Tuple):
        result = bound.value
    return list(result.fields) if isinstance(result, relax.Tuple) else [result]


def _is_computed(graph: tvm.IRModule, result: relax.Expr) -> bool:
    node = Dataflow(graph).node(result)
    return node is not None and isinstance(node.value, relax.Call | relax.TupleGetItem)
