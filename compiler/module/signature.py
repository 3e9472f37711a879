"""A module's inputs and outputs as numpy arrays: ordering and checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.arrays import as_input, as_output
from tinsmith.compiler.module.manifest import DimensionEntry, TensorEntry, shape_at

# Arrays, or what `tinsmith.compiler.module.arrays` makes into some, by name or in order.
Inputs = Mapping[str, Any] | Sequence[Any]
# Those to fill.
Outputs = Mapping[str, Any] | Sequence[Any]


def numpy_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that carries a tensor; bfloat16 travels as uint16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class Signature:
    """Names, dtypes and shapes of a module's inputs and outputs. Raises `InputError`.

    `dims` are the dimensions of shapes whose bounds are known.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorEntry],
        outputs: Sequence[TensorEntry],
        dims: Sequence[DimensionEntry] = (),
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.dims = tuple(dims)
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

    def keyword(self, name: str, value: Any, unset: Any, named: dict[str, Any]) -> Any:
        """The value of a call's option, which an input of the same name takes for itself."""
        if value is not unset and name in self._input_names:
            named[name] = value
            return unset
        return value

    def checked(self, inputs: Inputs, strict: bool = False) -> list[np.ndarray]:
        """The inputs in declared order, each contiguous, with the declared dtype and shape.

        Symbolic dimensions take their sizes from the arrays and must agree. `strict` refuses
        what would have to be copied.
        """
        arrays = self._in_order(inputs)
        symbols: dict[str, int] = {}
        for index, (tensor, dtype) in enumerate(self._declared):
            array = arrays[index]
            if not (
                isinstance(array, np.ndarray) and array.dtype == dtype and array.flags.c_contiguous
            ):
                what = f"input {tensor.name!r}"
                array = arrays[index] = as_input(what, array, dtype, tensor.dtype, strict)
            _check_shape("input", tensor, array, symbols)
        return arrays

    def sizes(self, arrays: Sequence[np.ndarray]) -> dict[str, int]:
        """The size of each dimension in `dims`, from inputs that `checked` has returned."""
        found: dict[str, int] = {}
        for dim in self.dims:
            for tensor, array in zip(self.inputs, arrays, strict=True):
                if dim.name in tensor.shape:
                    size = found[dim.name] = array.shape[tensor.shape.index(dim.name)]
                    if not dim.low <= size <= dim.high:
                        raise InputError(
                            f"input {tensor.name!r}: {dim.name} is {size}, the module takes "
                            f"{dim.low} to {dim.high}"
                        )
                    break
        return found

    def results(
        self, outputs: Outputs | None, sizes: Mapping[str, int] | None = None
    ) -> list[np.ndarray]:
        """The arrays to fill: those given, once checked, or new ones.

        `sizes` are those of the dimensions in `dims`; other shapes are fixed. In the place of an
        array that is not contiguous stands a new one, see `delivered`.
        """
        expected = self.outputs
        if sizes:
            expected = tuple(
                TensorEntry(tensor.name, tensor.dtype, shape_at(tensor.shape, sizes))
                for tensor in expected
            )
        if outputs is None:
            return [
                np.empty(tensor.shape, dtype)  # type: ignore[arg-type]
                for tensor, dtype in zip(expected, self.output_dtypes, strict=True)
            ]
        arrays = self.destinations(outputs)
        for tensor, array in zip(expected, arrays, strict=True):
            _check_shape("output", tensor, array, {})
        return [
            array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
            for array in arrays
        ]

    def destinations(self, outputs: Outputs) -> list[np.ndarray]:
        """Arrays of the memory of `outputs`, of the declared dtypes, in declared order."""
        given = self._outputs_in_order(outputs)
        return [
            as_output(f"output {tensor.name!r}", value, dtype)
            for tensor, dtype, value in zip(self.outputs, self.output_dtypes, given, strict=True)
        ]

    def delivered(self, results: list[np.ndarray], outputs: Outputs | None) -> list[Any]:
        """`outputs` in declared order, filled with `results`; those themselves if there are none.

        Raises `InputError` where a shape that was not known before does not fit.
        """
        if outputs is None:
            return results
        given = self._outputs_in_order(outputs)
        for tensor, dtype, value, result in zip(
            self.outputs, self.output_dtypes, given, results, strict=True
        ):
            if value is result:
                continue
            array = as_output(f"output {tensor.name!r}", value, dtype)
            if array.shape != result.shape:
                raise InputError(
                    f"output {tensor.name!r}: expected shape {result.shape}, got {array.shape}"
                )
            if array.ctypes.data != result.ctypes.data:
                np.copyto(array, result)
        return given

    def named(self, results: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return dict(zip(self._output_names, results, strict=True))

    def _outputs_in_order(self, outputs: Outputs) -> list[Any]:
        if isinstance(outputs, Mapping):
            unknown = sorted(set(outputs) - set(self._output_names))
            missing = [name for name in self._output_names if name not in outputs]
            if unknown or missing:
                problem = f"unknown output {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
                names = ", ".join(self._output_names)
                raise InputError(f"{self.name}: {problem} to fill; the outputs are: {names}")
            return [outputs[name] for name in self._output_names]
        if not isinstance(outputs, list | tuple):
            raise InputError(
                f"{self.name}: expected a list or a dict of arrays to fill, "
                f"got {type(outputs).__name__}"
            )
        if len(outputs) != len(self.outputs):
            raise InputError(
                f"{self.name}: has {len(self.outputs)} outputs, {len(outputs)} arrays were given"
            )
        return list(outputs)

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


def refuse_overlap(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Raise `InputError` where a module would write into what it still reads."""
    if any(np.may_share_memory(array, result) for array in inputs for result in outputs):
        raise InputError(
            "an array to fill lies in the memory of an input; give it memory of its own"
        )


def _check_shape(
    what: str, tensor: TensorEntry, array: np.ndarray, symbols: dict[str, int]
) -> None:
    if array.shape != tensor.shape and not _fits(array.shape, tensor.shape, symbols):
        expected = "(" + ", ".join(map(str, tensor.shape)) + ")"
        raise InputError(f"{what} {tensor.name!r}: expected shape {expected}, got {array.shape}")


def _fits(actual: tuple[int, ...], shape: tuple[int | str, ...], symbols: dict[str, int]) -> bool:
    return len(actual) == len(shape) and all(
        size == (symbols.setdefault(extent, size) if isinstance(extent, str) else extent)
        for size, extent in zip(actual, shape, strict=True)
    )
