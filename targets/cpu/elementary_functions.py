"""Replaces calls of elementary functions by branch-free arithmetic (see `elementary_maths`).

LLVM turns `exp` over a vector into one call of libm per lane. With additions,
multiplications, comparisons and integer shifts in its place a vectorised loop
stays a vector loop on every instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr
from tvm.tirx import PrimFunc, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.elementary_maths import LOWERINGS, Maths, power
from tinsmith.targets.cpu.expressions import CONDITIONAL, loads


def lower_elementary_functions(function: PrimFunc) -> PrimFunc:
    """Replaces float32 calls of elementary functions in `function` by arithmetic.

    Given `B[i] = exp(A[i])` in a vectorised loop, the result is
    `x[i] = A[i]; n[i] = ...; B[i] = ...` with small buffers on the stack that LLVM
    keeps in registers. Scalars and explicit vectors are handled alike. `Let`
    expressions are treated the same way. float64 and float16 calls, and functions
    without a lowering, stay as they are.
    """
    body = _Lowering().lower(function.body)
    return PrimFunc(list(function.params), body, function.ret_type, attrs=function.attrs)


# Functions of float64 for which TVM has nothing, or a polynomial of few digits.
_OF_LIBM = frozenset({"cosh", "erf", "sinh"})


class _Scope:
    """The values that one statement needs, computed once each and in order.

    They live in buffers and not in `Let` or `Bind` variables: TVM's simplifier
    and its code generator substitute variables by their values, and the result
    grows exponentially with the number of variables that are used twice.
    """

    def __init__(self, lane: Expr | None, width: int) -> None:
        self.buffers: list[Var] = []
        self.statements: list[tirx.Stmt] = []
        self.guards: list[Expr] = []
        self._lane = lane
        self._width = width

    def bind(self, value: Expr) -> Expr:
        """A read of a new buffer that holds `value`."""
        if isinstance(value, (Var, tirx.FloatImm)):
            return value
        dtype = tvm.DataType(str(value.ty.dtype))
        index: Expr = loops.ramp(0, dtype.lanes)
        width = dtype.lanes
        if width == 1 and self._lane is not None:
            index, width = self._lane, self._width
        element = str(dtype).partition("x")[0]
        buffer = loops.local_buffer("value", (width,), element)
        if loads(value):
            # Under a condition a read may be out of bounds where the condition fails.
            zero = tirx.const(0, str(dtype))
            for guard in reversed(self.guards):
                value = tirx.if_then_else(guard, value, zero)
        self.buffers.append(buffer)
        self.statements.append(tirx.BufferStore(buffer, value, [index]))
        return tirx.BufferLoad(buffer, [index])


class _Lowering:
    """Rewrites statements; what a statement needs is computed right before it."""

    def __init__(self) -> None:
        self._scope: _Scope | None = None
        self._lane: Expr | None = None
        self._width = 1
        self._loop_buffers: list[Var] = []
        self._bound: dict[Var, Expr] = {}

    def lower(self, statement: tirx.Stmt) -> tirx.Stmt:
        """The statement without elementary functions."""
        callbacks = [
            (tirx.For, self._loop),
            (tirx.BufferStore, self._store),
            (tirx.Bind, self._bind),
            (tirx.Let, self._let),
            (Var, self._variable),
            (Call, self._call),
        ]
        return tvm_ffi.structural_mutate(statement, callbacks)

    def _loop(self, loop: tirx.For, mutator: Any) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.VECTORIZED or self._lane is not None:
            return mutator.default_mutate(loop)
        self._lane, self._width = loop.loop_var, int(loop.extent)
        mutated = mutator.default_mutate(loop)
        buffers, self._loop_buffers = self._loop_buffers, []
        self._lane, self._width = None, 1
        return loops.sequence([*(loops.allocate_on_stack(b) for b in buffers), mutated])

    def _statement(self, make: Callable[[], tirx.Stmt]) -> tirx.Stmt:
        self._scope = scope = _Scope(self._lane, self._width)
        statement = make()
        self._scope = None
        if self._lane is not None:
            self._loop_buffers.extend(scope.buffers)
            return loops.sequence([*scope.statements, statement])
        allocations = [loops.allocate_on_stack(b) for b in scope.buffers]
        return loops.sequence([*allocations, *scope.statements, statement])

    def _store(self, store: tirx.BufferStore, mutator: Any) -> tirx.Stmt:
        def make() -> tirx.Stmt:
            indices = [mutator.mutate(i) for i in store.indices]
            return tirx.BufferStore(store.buffer, mutator.mutate(store.value), indices)

        return self._statement(make)

    def _bind(self, bind: tirx.Bind, mutator: Any) -> tirx.Stmt:
        return self._statement(lambda: tirx.Bind(bind.var, mutator.mutate(bind.value)))

    def _variable(self, variable: Var, _mutator: Any) -> Expr:
        return self._bound.get(variable, variable)

    def _let(self, let: tirx.Let, mutator: Any) -> Expr:
        if self._scope is None:
            return mutator.default_mutate(let)
        self._bound[let.var] = self._scope.bind(mutator.mutate(let.value))
        return mutator.mutate(let.body)

    def _guarded(self, arguments: Sequence[Expr], mutator: Any) -> list[Expr]:
        condition, yes, no = arguments
        if self._scope is None:
            return [mutator.mutate(e) for e in (condition, yes, no)]
        test = mutator.mutate(condition)
        branches = []
        for guard, branch in ((test, yes), (tirx.Not(test), no)):
            self._scope.guards.append(guard)
            branches.append(mutator.mutate(branch))
            self._scope.guards.pop()
        return [test, *branches]

    def _call(self, call: Call, mutator: Any) -> Expr:
        name = str(getattr(call.op, "name", ""))
        if name == CONDITIONAL:
            return tirx.if_then_else(*self._guarded(call.args, mutator))
        short = name.removeprefix("tirx.")
        known = short in LOWERINGS or short == "pow"
        dtype = str(getattr(call.ty, "dtype", ""))
        if short in _OF_LIBM and name != short and dtype.partition("x")[0] == "float64":
            return tirx.call_pure_extern(dtype, short, mutator.mutate(call.args[0]))
        if not known or name == short or self._scope is None or not _is_float32(dtype):
            return mutator.default_mutate(call)
        maths = Maths(self._scope.bind, tvm.DataType(dtype).lanes)
        argument = mutator.mutate(call.args[0])
        if short in LOWERINGS:
            return LOWERINGS[short](maths, argument)
        exponent = mutator.mutate(call.args[1])
        value = exponent.value if isinstance(exponent, tirx.Broadcast) else exponent
        if isinstance(value, tirx.FloatImm):
            return power(maths, argument, float(value.value))
        return tirx.pow(argument, exponent)


def _is_float32(dtype: str) -> bool:
    return dtype.partition("x")[0] == "float32"
