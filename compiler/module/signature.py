"""A module's inputs and outputs as numpy arrays: ordering and checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.manifest import TensorEntry

Inputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]


def numpy_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that carries a tensor; bfloat16 travels as uint16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class Signature:
    """Names, dtypes and shapes of a module's inputs and outputs. Raises `InputError`."""

    def __init__(
        self, name: str, inputs: Sequence[TensorEntry], outputs: Sequence[TensorEntry]
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.input_dtypes = [numpy_dtype(t.dtype) for t in inputs]
        self.output_dtypes = [numpy_dtype(t.dtype) for t in outputs]
        self._input_names = frozenset(t.name for t in inputs)
        self._output_names = tuple(t.name for t in outputs)
        self._declared = tuple(zip(self.inputs, self.input_dtypes, strict=True))

    def gather(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Inputs:
        """The inputs of a call written `f(a, b)`, `f({"x": a})` or `f(x=a)`."""
        if named and inputs:
            raise InputError("give the inputs either in order or by name, not both")
        if named:
            return named
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return inputs[0]
        return inputs

    def checked(self, inputs: Inputs) -> list[np.ndarray]:
        """The inputs in declared order, each with the declared dtype and shape.

        Symbolic dimensions take their sizes from the arrays and must agree.
        """
        arrays = self._in_order(inputs)
        symbols: dict[str, int] = {}
        for (tensor, dtype), array in zip(self._declared, arrays, strict=True):
            _check_array("input", tensor, array, dtype, symbols)
        return arrays

    def results(self, outputs: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        """The arrays to fill: those given, once checked, or new ones (static shapes only)."""
        if outputs is None:
            return [
                np.empty(tensor.shape, dtype)  # type: ignore[arg-type]
                for tensor, dtype in zip(self.outputs, self.output_dtypes, strict=True)
            ]
        if len(outputs) != len(self.outputs):
            raise InputError(
                f"{self.name}: has {len(self.outputs)} outputs, {len(outputs)} arrays were given"
            )
        for tensor, dtype, array in zip(self.outputs, self.output_dtypes, outputs, strict=True):
            _check_array("output", tensor, array, dtype, {})
            if not array.flags.writeable:
                raise InputError(f"output {tensor.name!r}: the array is read-only")
        return list(outputs)

    def named(self, results: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return dict(zip(self._output_names, results, strict=True))

    def _in_order(self, inputs: Inputs) -> list[np.ndarray]:
        if isinstance(inputs, Mapping):
            if inputs.keys() != self._input_names:
                unknown = sorted(set(inputs) - self._input_names)
                missing = [t.name for t in self.inputs if t.name not in inputs]
                problem = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
                names = ", ".join(t.name for t in self.inputs)
                raise InputError(f"{self.name}: {problem}; the inputs are: {names}")
            return [inputs[t.name] for t in self.inputs]
        if not isinstance(inputs, list | tuple):
            raise InputError(
                f"{self.name}: expected a list or a dict of arrays, got {type(inputs).__name__}"
            )
        if len(inputs) != len(self.inputs):
            raise InputError(
                f"{self.name}: takes {len(self.inputs)} inputs, {len(inputs)} were given"
            )
        return list(inputs)


def _check_array(
    what: str, tensor: TensorEntry, array: Any, dtype: np.dtype, symbols: dict[str, int]
) -> None:
    if not isinstance(array, np.ndarray):
        problem = f"expected a numpy array, got {type(array).__name__}"
    elif array.dtype != dtype:
        problem = f"expected dtype {dtype}, got {array.dtype}; convert it first"
    elif array.shape != tensor.shape and not _fits(array.shape, tensor.shape, symbols):
        expected = "(" + ", ".join(map(str, tensor.shape)) + ")"
        problem = f"expected shape {expected}, got {array.shape}"
    elif not array.flags.c_contiguous:
        problem = "the array is not contiguous; use numpy.ascontiguousarray"
    else:
        return
    raise InputError(f"{what} {tensor.name!r}: {problem}")


def _fits(actual: tuple[int, ...], shape: tuple[int | str, ...], symbols: dict[str, int]) -> bool:
    return len(actual) == len(shape) and all(
        size == (symbols.setdefault(extent, size) if isinstance(extent, str) else extent)
        for size, extent in zip(actual, shape, strict=True)
    )
