"""A small vocabulary for writing TensorIR loop nests directly.

Templates that need control over every loop (edges peeled off, tiles that
overlap, accumulators held in registers) build statements with these functions
instead of transforming a naive nest step by step: the result is the same kind
of TensorIR, reached with far less compile time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import tvm
from tvm import tirx
from tvm.ir import Expr, PrimType
from tvm.tirx import ForKind, Stmt, Var

Index: TypeAlias = "Expr | int"
# A thread's stack is small; buffers above this size are not meant for registers anyway.
_STACK_BYTES = 8 * 1024


def index(value: Index) -> Expr:
    """`value` as an int32 expression; templates compute all indices in 32 bits."""
    return tirx.const(value, "int32") if isinstance(value, int) else value


def is_zero(value: Index) -> bool:
    """Whether `value` is the constant 0."""
    if isinstance(value, int):
        return value == 0
    return isinstance(value, tirx.IntImm) and int(value.value) == 0


def _loop(kind: ForKind) -> Callable[..., Stmt]:
    def make(name: str, extent: Index, body: Callable[[Expr], Stmt], start: Index = 0) -> Stmt:
        if isinstance(extent, int) and extent == 1:
            return body(index(start))
        variable = Var(name, PrimType("int32"))
        return tirx.For(variable, index(0), index(extent), kind, body(_plus(variable, start)))

    return make


def _plus(variable: Expr, start: Index) -> Expr:
    return variable if is_zero(start) else variable + index(start)


serial = _loop(ForKind.SERIAL)
parallel = _loop(ForKind.PARALLEL)
vectorized = _loop(ForKind.VECTORIZED)


def vectors(extent: int, lanes: int, body: Callable[[Expr], Stmt]) -> Stmt | None:
    """`body` for `extent` neighbouring elements, in vectors of `lanes` and a shorter one."""
    whole, rest = divmod(extent, lanes)
    present: list[Stmt] = []
    if whole:
        present.append(
            serial(
                "vector",
                whole,
                lambda i: vectorized("lane", lanes, lambda j: body(i * lanes + j)),
            )
        )
    if rest:
        present.append(vectorized("lane", rest, lambda j: body(j + whole * lanes)))
    return sequence(present) if present else None


# Handing work to other threads costs a few microseconds; below this many operations or
# bytes one thread is done sooner.
_PARALLEL_OPERATIONS = 200_000
_PARALLEL_BYTES = 128 * 1024


def tasks(extent: int, operations: int, traffic: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop over independent tasks, parallel if `operations` or bytes of `traffic` warrant it."""
    worthwhile = operations >= _PARALLEL_OPERATIONS or traffic >= _PARALLEL_BYTES
    loop = parallel if worthwhile and extent > 1 else serial
    return loop("task", extent, body)


def sequence(statements: Iterable[Stmt | None]) -> Stmt:
    """The statements in order, without the absent ones."""
    present = [s for s in statements if s is not None]
    if not present:
        return tirx.Evaluate(tirx.const(0, "int32"))
    return present[0] if len(present) == 1 else tirx.SeqStmt(present)


def local_buffer(name: str, shape: Sequence[int], dtype: str) -> Var:
    """A buffer for values that are meant to live in registers."""
    return tirx.decl_buffer(tuple(shape), dtype, name, scope="local")


def allocate(buffers: Iterable[Var], body: Stmt) -> Stmt:
    """`body` with `buffers` allocated in front of it."""
    return sequence([*(tirx.AllocBuffer(b) for b in buffers), body])


def allocate_on_stack(buffer: Var) -> Stmt:
    """Allocates a buffer where LLVM can turn it into registers; large ones come from the heap."""
    elements = math.prod(int(extent) for extent in buffer.ty.shape)
    size = elements * tvm.DataType(str(buffer.ty.dtype)).bits // 8
    on_stack = size <= _STACK_BYTES
    annotations = {"disable_lower_builtin": tirx.IntImm("bool", 1)} if on_stack else None
    return tirx.AllocBuffer(buffer, annotations)


def store(buffer: Var, indices: Sequence[Index], value: Expr) -> Stmt:
    """`buffer[indices] = value`"""
    return tirx.BufferStore(buffer, value, [index(i) for i in indices])


def load(buffer: Var, *indices: Index) -> Expr:
    """`buffer[indices]`"""
    return tirx.BufferLoad(buffer, [index(i) for i in indices])


def prefetch(element: Expr) -> Stmt:
    """Asks for the cache line of a loaded `element` to be brought into the second cache."""
    read, into_second_cache, data = (tirx.const(n, "int32") for n in (0, 2, 1))
    address = tirx.address_of(element)
    return tirx.Evaluate(
        tirx.call_llvm_intrin("void", "llvm.prefetch", address, read, into_second_cache, data)
    )


def ramp(start: Index, lanes: int) -> Expr:
    """The indices `start, start + 1, ...` of `lanes` neighbours."""
    return index(start) if lanes == 1 else tirx.Ramp(index(start), index(1), lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """`value` in all `lanes`."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def bind(name: str, value: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    """`body` with the int32 `value` computed once and bound to a variable."""
    variable = Var(name, PrimType("int32"))
    return sequence([tirx.Bind(variable, value), body(variable)])


def unravel(linear: Expr, extents: Sequence[int]) -> list[Expr]:
    """The indices of element `linear` of a row-major array of `extents`."""
    indices: list[Expr] = []
    for position, extent in enumerate(reversed(extents)):
        if extent == 1:
            indices.append(index(0))
        elif math.prod(extents[: len(extents) - 1 - position]) == 1:
            indices.append(linear)
        else:
            indices.append(linear % extent)
            linear = linear // extent
    return indices[::-1]
