"""Index arithmetic and scalar expressions: narrowing, linear forms, simplification, cost.

All functions are pure. Indices are 32 bits wide: 64-bit index arithmetic halves
the vector width and keeps LLVM from proving strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Range, TensorLoad
from tvm.sym import Analyzer
from tvm.tirx import Var

_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)
_TRUNCATING = (tirx.Div, tirx.Mod)
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
CONDITIONAL = "prim.if_then_else"
_INT32_LIMIT = 2**31 - 1

# Calls that cost about as much as this many additions when evaluated as polynomials.
_EXPENSIVE_CALLS = {
    "exp": 14,
    "exp2": 12,
    "exp10": 16,
    "log": 18,
    "log2": 18,
    "log10": 18,
    "log1p": 20,
    "tanh": 16,
    "sigmoid": 18,
    "erf": 22,
    "sin": 18,
    "cos": 18,
    "tan": 30,
    "pow": 36,
    "sqrt": 6,
    "rsqrt": 8,
}


class WideIndexError(Exception):
    """An index does not fit into 32 bits, or is of a kind that is not understood."""


def dtype_of(expr: Expr) -> str:
    """The element type of a scalar expression, for example `float32`."""
    return str(expr.ty.dtype)


def constant_value(expr: Expr | int) -> int | None:
    """The value of an integer literal, or None."""
    if isinstance(expr, int):
        return expr
    return int(expr.value) if isinstance(expr, tirx.IntImm) else None


def int32(value: int) -> Expr:
    """An index literal."""
    return tirx.IntImm("int32", value)


def call_name(expr: Expr) -> str | None:
    """The operator's name of a call without its dialect: `exp`, `if_then_else`."""
    if isinstance(expr, Call) and hasattr(expr.op, "name"):
        return str(expr.op.name).rpartition(".")[2]
    return None


def variables(node: Any) -> set[Var]:
    """All variables (buffers included) that occur in `node`."""
    found: set[Var] = set()
    tvm_ffi.structural_walk(node, (Var, found.add))
    return found


def loads(node: Any) -> list[TensorLoad]:
    """All buffer reads in `node`, in order of occurrence; nested ones too."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(node, (TensorLoad, found.append))
    return found


def substitute(expr: Expr, mapping: Mapping[Var, Expr]) -> Expr:
    """`expr` with variables replaced and every let-bound variable renamed."""
    renamed: dict[Var, Expr] = {}

    def variable(var: Var, _mutator: Any) -> Expr:
        return mapping.get(var, renamed.get(var, var))

    def load(node: TensorLoad, mutator: Any) -> Expr:
        source = mapping.get(node.source, node.source)
        return tirx.BufferLoad(source, [mutator.mutate(i) for i in node.indices])

    def let(node: tirx.Let, mutator: Any) -> Expr:
        fresh = Var(node.var.name, node.var.ty)
        value = mutator.mutate(node.value)
        renamed[node.var] = fresh
        return tirx.Let(fresh, value, mutator.mutate(node.body))

    return tvm_ffi.structural_mutate(expr, [(TensorLoad, load), (tirx.Let, let), (Var, variable)])


def replace_loads(expr: Expr, replace: Callable[[TensorLoad], Expr | None]) -> Expr:
    """`expr` with each read replaced by `replace(read)`; None keeps it.

    Reads nested in another read's indices are replaced first.
    """

    def load(node: TensorLoad, mutator: Any) -> Expr:
        inner = tirx.BufferLoad(node.source, [mutator.mutate(i) for i in node.indices])
        found = replace(inner)
        return inner if found is None else found

    return tvm_ffi.structural_mutate(expr, [(TensorLoad, load)])


def _is_index(expr: Expr, axes: Mapping[Var, Expr]) -> bool:
    """Whether an int64 expression is made of loop variables and literals only."""
    if isinstance(expr, tirx.IntImm):
        return abs(int(expr.value)) <= _INT32_LIMIT
    if isinstance(expr, Var):
        return expr in axes
    if isinstance(expr, (*_ARITHMETIC, *_TRUNCATING)):
        return _is_index(expr.a, axes) and _is_index(expr.b, axes)
    return False


def narrow(expr: Expr, axes: Mapping[Var, Expr]) -> Expr:
    """An index expression with 32-bit arithmetic; `axes` maps old variables to new ones."""
    if isinstance(expr, tirx.IntImm):
        if abs(int(expr.value)) > _INT32_LIMIT:
            raise WideIndexError(str(expr))
        return int32(int(expr.value))
    if isinstance(expr, Var):
        if expr in axes:
            return axes[expr]
        if dtype_of(expr) == "int32":
            return expr
        raise WideIndexError(str(expr))
    if isinstance(expr, _ARITHMETIC):
        return type(expr)(narrow(expr.a, axes), narrow(expr.b, axes))
    if isinstance(expr, tirx.Div):
        return tirx.truncdiv(narrow(expr.a, axes), narrow(expr.b, axes))
    if isinstance(expr, tirx.Mod):
        return tirx.truncmod(narrow(expr.a, axes), narrow(expr.b, axes))
    if isinstance(expr, tirx.Select):
        return tirx.Select(
            widen(expr.condition, axes),
            narrow(expr.true_value, axes),
            narrow(expr.false_value, axes),
        )
    if isinstance(expr, Call) and expr.op.name == CONDITIONAL:
        condition, yes, no = expr.args
        return tirx.if_then_else(widen(condition, axes), narrow(yes, axes), narrow(no, axes))
    if isinstance(expr, tirx.Cast):
        kind = dtype_of(expr.value)
        if kind in ("int64", "int32"):
            return narrow(expr.value, axes)
        return tirx.Cast("int32", widen(expr.value, axes))
    converted = widen(expr, axes)
    return converted if dtype_of(converted) == "int32" else tirx.Cast("int32", converted)


def widen(expr: Expr, axes: Mapping[Var, Expr]) -> Expr:
    """A value expression with its dtype kept and all indices within it narrowed."""

    def variable(var: Var, _mutator: Any) -> Expr:
        if var not in axes:
            return var
        new = axes[var]
        return new if dtype_of(var) == dtype_of(new) else tirx.Cast(dtype_of(var), new)

    def load(node: TensorLoad, _mutator: Any) -> Expr:
        return tirx.BufferLoad(node.source, [narrow(i, axes) for i in node.indices])

    def comparison(node: Any, mutator: Any) -> Expr:
        if dtype_of(node.a) == "int64" and _is_index(node.a, axes) and _is_index(node.b, axes):
            return type(node)(narrow(node.a, axes), narrow(node.b, axes))
        return type(node)(mutator.mutate(node.a), mutator.mutate(node.b))

    def cast(node: tirx.Cast, mutator: Any) -> Expr:
        if dtype_of(node.value) == "int64" and _is_index(node.value, axes):
            value = narrow(node.value, axes)
            return value if dtype_of(node) == "int32" else tirx.Cast(dtype_of(node), value)
        return tirx.Cast(dtype_of(node), mutator.mutate(node.value))

    return tvm_ffi.structural_mutate(
        expr,
        [(TensorLoad, load), (tirx.Cast, cast), (_COMPARISONS, comparison), (Var, variable)],
    )


@dataclass(frozen=True)
class Linear:
    """`sum(coefficients[v] * v) + constant + sum(rest)`; `rest` is what is not linear."""

    coefficients: Mapping[Var, int]
    constant: int
    rest: tuple[Expr, ...] = ()

    def __add__(self, other: Linear) -> Linear:
        merged = dict(self.coefficients)
        for var, coefficient in other.coefficients.items():
            merged[var] = merged.get(var, 0) + coefficient
        return Linear(merged, self.constant + other.constant, self.rest + other.rest)

    def scaled(self, factor: int) -> Linear:
        """This form times a literal."""
        scaled = {v: c * factor for v, c in self.coefficients.items()}
        return Linear(scaled, self.constant * factor, self.rest)

    def stride(self, var: Var) -> int:
        """The coefficient of `var` (0 when it does not occur linearly)."""
        return self.coefficients.get(var, 0)

    def opaque_variables(self) -> set[Var]:
        """Variables on which the result depends in a way that is not linear."""
        return variables(list(self.rest)) if self.rest else set()


def linear_form(expr: Expr) -> Linear:
    """The linear form of an int32 index expression."""
    if isinstance(expr, tirx.IntImm):
        return Linear({}, int(expr.value))
    if isinstance(expr, Var):
        return Linear({expr: 1}, 0)
    if isinstance(expr, tirx.Add):
        return linear_form(expr.a) + linear_form(expr.b)
    if isinstance(expr, tirx.Sub):
        return linear_form(expr.a) + linear_form(expr.b).scaled(-1)
    if isinstance(expr, tirx.Mul):
        for literal, other in ((expr.b, expr.a), (expr.a, expr.b)):
            if isinstance(literal, tirx.IntImm):
                return linear_form(other).scaled(int(literal.value))
    return Linear({}, 0, (expr,))


class Simplifier:
    """Simplifies indices and conditions, given the range of every loop variable."""

    def __init__(self, extents: Iterable[tuple[Var, int]]) -> None:
        self._analyzer = Analyzer()
        for var, extent in extents:
            self._analyzer.bind(var, Range.from_min_extent(int32(0), int32(extent)))

    def index(self, expr: Expr) -> Expr:
        """An equal index expression without avoidable divisions."""
        if isinstance(expr, (tirx.IntImm, Var)):
            return expr
        return self._analyzer.canonical_simplify(self.value(expr))

    def value(self, expr: Expr) -> Expr:
        """A value expression with its indices and conditions simplified."""

        def load(node: TensorLoad, _mutator: Any) -> Expr:
            return tirx.BufferLoad(node.source, [self.index(i) for i in node.indices])

        def truncated(node: Any, mutator: Any) -> Expr:
            a, b = mutator.mutate(node.a), mutator.mutate(node.b)
            if dtype_of(a) == "int32" and self._is_natural(a) and self._is_natural(b):
                floor = tirx.FloorDiv if isinstance(node, tirx.Div) else tirx.FloorMod
                return floor(a, b)
            return type(node)(a, b)

        def condition(node: Any) -> Expr:
            return self._analyzer.simplify(self.value(node))

        def call(node: Call, mutator: Any) -> Expr:
            if node.op.name != CONDITIONAL:
                return mutator.default_mutate(node)
            test = condition(node.args[0])
            decided = constant_value(test)
            if decided is not None:
                return mutator.mutate(node.args[1] if decided else node.args[2])
            return tirx.if_then_else(
                test, mutator.mutate(node.args[1]), mutator.mutate(node.args[2])
            )

        def select(node: tirx.Select, mutator: Any) -> Expr:
            test = condition(node.condition)
            decided = constant_value(test)
            if decided is not None:
                return mutator.mutate(node.true_value if decided else node.false_value)
            return tirx.Select(
                test, mutator.mutate(node.true_value), mutator.mutate(node.false_value)
            )

        return tvm_ffi.structural_mutate(
            expr,
            [(TensorLoad, load), (Call, call), (tirx.Select, select), (_TRUNCATING, truncated)],
        )

    def _is_natural(self, expr: Expr) -> bool:
        return int(self._analyzer.const_int_bound(expr).min_value) >= 0


def cost(expr: Expr) -> int:
    """Arithmetic of one evaluation, in units of about one addition; indices are free."""
    total = 0

    def walk(node: Any) -> None:
        nonlocal total
        if isinstance(node, TensorLoad) or not isinstance(node, Expr):
            return
        if isinstance(node, tirx.Div):
            total += 4
        elif isinstance(node, Call):
            total += _EXPENSIVE_CALLS.get(call_name(node) or "", 1)
        elif not isinstance(node, (Var, tirx.IntImm, tirx.FloatImm, tirx.Let)):
            total += 1
        for child in children(node):
            walk(child)

    walk(expr)
    return total


def children(node: Any) -> list[Expr]:
    """The operands of a scalar expression."""
    if isinstance(node, Call):
        return list(node.args)
    if isinstance(node, TensorLoad):
        return list(node.indices)
    if isinstance(node, tirx.Select):
        return [node.condition, node.true_value, node.false_value]
    if isinstance(node, tirx.Let):
        return [node.value, node.body]
    if isinstance(node, tirx.Cast):
        return [node.value]
    if isinstance(node, tirx.Not):
        return [node.a]
    if hasattr(node, "a") and hasattr(node, "b"):
        return [node.a, node.b]
    return []
