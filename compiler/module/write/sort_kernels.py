"""Kernels that TVM would hand to its runtime's sort functions, taken over by runtime/sort.c.

`relax.sort`, `argsort` and `topk` become PrimFuncs whose only statement is a
packed call of `tvm.contrib.sort.*`. The module's own C function sorts each row
in a thread's scratch memory; ties keep their order, as in TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, StringImm
from tvm.tirx import IntImm

from tinsmith.compiler.module.write.stages import KernelCode, Stage, align_up

# The types of runtime/sort.c, in the order of its enumeration.
_DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
_NONE = -1


@dataclass(frozen=True)
class SortCall:
    """One call of `sort_rows`: positions of the kernel's arguments, or -1 where absent."""

    dtype: int
    index_dtype: int
    source: int
    values: int
    indices: int
    length: int
    inner: int
    keep: int
    descending: bool

    def initializer(self) -> str:
        """The C initializer of `sort_call`."""
        fields = (
            self.dtype, self.index_dtype, self.source, self.values, self.indices,
            self.length, self.inner, self.keep, int(self.descending),
        )  # fmt: skip
        return "{" + ", ".join(map(str, fields)) + "}"


def match_sort(name: str, function: tirx.PrimFunc) -> tuple[KernelCode, SortCall] | None:
    """The sort that `function` stands for; None if it is anything else."""
    calls: list[Call] = []
    other: list[object] = []

    def visit_call(call: Call) -> None:
        if getattr(call.op, "name", "") == "tirx.tvm_call_packed":
            calls.append(call)

    tvm_ffi.structural_walk(function.body, (Call, visit_call))
    tvm_ffi.structural_walk(function.body, ((tirx.BufferStore, tirx.For), other.append))
    if len(calls) != 1 or other:
        return None
    call = calls[0]
    target = call.args[0].value if isinstance(call.args[0], StringImm) else ""
    kind = target.removeprefix("tvm.contrib.sort.")
    if kind == target or kind not in ("sort", "argsort", "topk"):
        return None
    arrays, attributes = _split_arguments(call)
    parameters = list(function.params)
    positions = [p for array in arrays if (p := _parameter_of(array, parameters)) is not None]
    if not len(positions) == len(arrays) == len(parameters):
        return None
    source, *outputs = positions
    shape = [int(extent.value) for extent in parameters[source].ty.shape]
    wanted = "values" if kind == "sort" else "indices"
    keep = 0
    if kind == "topk":
        keep, wanted = int(attributes[0]), str(attributes[2])
    axis, ascending = int(attributes[1 if kind == "topk" else 0]) % len(shape), attributes[-1]
    values = outputs.pop(0) if wanted in ("both", "values") else _NONE
    indices = outputs.pop(0) if wanted in ("both", "indices") else _NONE
    length = shape[axis]
    inner, rows = 1, 1
    for i, extent in enumerate(shape):
        inner *= extent if i > axis else 1
        rows *= extent if i != axis else 1
    dtype = _dtype_number(parameters[source])
    index_dtype = _dtype_number(parameters[indices]) if indices != _NONE else 0
    if dtype is None or index_dtype is None or (indices != _NONE and index_dtype == 0):
        return None
    sort = SortCall(
        dtype, index_dtype, source, values, indices, length, inner,
        keep if 0 < keep < length else length, not ascending,
    )  # fmt: skip
    stage = Stage("", rows, (), ())
    scratch = 2 * align_up(4 * length)
    return KernelCode(name, len(parameters), (stage,), task_scratch_bytes=scratch), sort


def _split_arguments(call: Call) -> tuple[list[Call], list[Any]]:
    arrays: list[Call] = []
    attributes: list[Any] = []
    for argument in call.args[1:]:
        if isinstance(argument, Call):
            arrays.append(argument)
        elif isinstance(argument, IntImm | StringImm):
            attributes.append(argument.value)
        else:
            attributes.append(None)
    return arrays, attributes


def _parameter_of(array: Call, parameters: list[tirx.Var]) -> int | None:
    used = set(tirx.analysis.undefined_vars(tirx.Evaluate(array)))
    found = [i for i, parameter in enumerate(parameters) if parameter in used]
    return found[0] if len(found) == 1 else None


def _dtype_number(buffer: tirx.Var) -> int | None:
    dtype = str(buffer.ty.dtype)
    return _DTYPES.index(dtype) if dtype in _DTYPES else None
