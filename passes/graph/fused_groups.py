"""Which operators of a graph each fused kernel computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter, variables_in
from tinsmith.passes.graph.tensors import operator_name

ATTRIBUTE = "fused_groups"


def unique_names(function: relax.Function) -> dict[relax.Var, str]:
    """A name for each variable of a function, parameters first, in order.

    That of the variable, with `.2`, `.3`, ... behind it where several have the same.
    """
    used: Counter[str] = Counter()
    names: dict[relax.Var, str] = {}
    for variable in (*function.params, *(binding.var for binding in _bindings(function))):
        used[variable.name] += 1
        count = used[variable.name]
        names[variable] = variable.name if count == 1 else f"{variable.name}.{count}"
    return names


def name_fused_groups(unfused: tvm.IRModule, grouped: tvm.IRModule) -> tvm.IRModule:
    """The result of FuseOps, its calls bound to the names that their results had before.

    FuseOps names what it binds anew; here each call of a group gets the name of
    the last operator in it. The module's attribute `fused_groups` maps names in
    `main` to the names of all that is computed there, as `kernel_calls` reads it.

    A group is found again by its operands: the callee and the operands of an
    operator tell it from all others. What is not found keeps its new name.
    """
    names = unique_names(unfused["main"])
    known: dict[Any, list[relax.Var]] = {}
    for binding in _bindings(unfused["main"]):
        known.setdefault(_key(binding.value, {}), []).append(binding.var)
    original: dict[relax.Var, relax.Expr] = {v: v for v in unfused["main"].params}
    original |= dict(zip(grouped["main"].params, unfused["main"].params, strict=True))
    members: dict[relax.Var, list[str]] = {}

    def find(binding: relax.Binding, inside: dict[relax.Var, relax.Expr]) -> relax.Var | None:
        found = known.get(_key(binding.value, inside))
        if not found:
            return None
        # Equal operators are taken in order; the last one stands for further calls.
        inside[binding.var] = found.pop(0) if len(found) > 1 else found[0]
        return inside[binding.var]

    for binding in _bindings(grouped["main"]):
        call = binding.value
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
            last = find(binding, original)
            members[binding.var] = [] if last is None else [names[last]]
            continue
        group = grouped[call.op]
        inside = {
            parameter: _original(argument, original)
            for parameter, argument in zip(group.params, call.args, strict=True)
        }
        found = [find(inner, inside) for inner in _bindings(group)]
        members[binding.var] = [names[variable] for variable in found if variable is not None]
        if found and found[-1] is not None:
            original[binding.var] = found[-1]
    renamed = _Renamer(grouped, {v: own[-1] for v, own in members.items() if own}).run()
    names = unique_names(renamed["main"])
    groups = {
        names[binding.var]: members[variable]
        for binding, variable in zip(_bindings(renamed["main"]), members, strict=True)
    }
    return renamed.with_attr(ATTRIBUTE, groups)


@dataclass(frozen=True)
class KernelCall:
    """One kernel call of `main`: the tensors it computes, and which calls read its result.

    `members` are names of the graph before fusion, as `unique_names` gives them; of a kernel
    that was not followed there are none. `readers` are positions among the calls.
    """

    members: tuple[str, ...]
    readers: tuple[int, ...]


def kernel_calls(module: tvm.IRModule) -> tuple[KernelCall, ...]:
    """The kernel calls of a module that comes from `Fuse`, in order."""
    groups: Mapping[str, Any] = (module.attrs or {}).get(ATTRIBUTE, {})
    names = unique_names(module["main"])
    members: list[tuple[str, ...]] = []
    readers: list[list[int]] = []
    writers: dict[relax.Var, list[int]] = {}
    for binding in _bindings(module["main"]):
        sources = list(
            dict.fromkeys(w for v in variables_in(binding.value) for w in writers.get(v, []))
        )
        if operator_name(binding.value) != "relax.call_tir":
            writers[binding.var] = sources  # a view: who reads it reads what it shows
            continue
        for source in sources:
            readers[source].append(len(members))
        writers[binding.var] = [len(members)]
        members.append(tuple(map(str, groups.get(names[binding.var], ()))))
        readers.append([])
    return tuple(KernelCall(m, tuple(r)) for m, r in zip(members, readers, strict=True))


def computed_by_kernel(module: tvm.IRModule) -> dict[str, tuple[str, ...]]:
    """What the calls of each kernel compute, by its name: `KernelCall.members`, in order.

    Of a kernel that was not followed the name of its result.
    """
    groups: Mapping[str, Any] = (module.attrs or {}).get(ATTRIBUTE, {})
    names = unique_names(module["main"])
    found: dict[str, tuple[str, ...]] = {}
    for binding in _bindings(module["main"]):
        if operator_name(binding.value) == "relax.call_tir":
            name = names[binding.var]
            members = tuple(map(str, groups.get(name, ()))) or (name,)
            kernel = str(binding.value.args[0].name_hint)
            found[kernel] = (*found.get(kernel, ()), *members)
    return found


class _Renamer(BlockRewriter):
    """Binds the calls in dataflow blocks to variables of other names."""

    def __init__(self, module: tvm.IRModule, names: Mapping[relax.Var, str]) -> None:
        super().__init__(module)
        self._names = names

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        new = self._builder.normalize(self.substitute(value))
        return self.emit(new, self._names.get(variable, variable.name))


def _bindings(function: relax.Function) -> Iterator[relax.VarBinding]:
    if isinstance(function.body, relax.SeqExpr):
        for block in function.body.blocks:
            yield from block.bindings


def _original(expr: relax.Expr, original: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    return original.get(expr, expr) if isinstance(expr, relax.Var) else expr


def _key(value: relax.Expr, original: Mapping[relax.Var, relax.Expr]) -> Any:
    """What tells an operator from others: its callee and its operands."""
    if isinstance(value, relax.Call):
        return (value.op, *(_key(argument, original) for argument in value.args))
    if isinstance(value, relax.Tuple):
        return ("tuple", *(_key(field, original) for field in value.fields))
    if isinstance(value, relax.TupleGetItem):
        return (value.index, _key(value.tuple_value, original))
    if isinstance(value, tvm.ir.GlobalVar):
        return value.name_hint
    if isinstance(value, relax.ShapeExpr):
        return str(value)
    return _original(value, original) if isinstance(value, relax.Var) else value
