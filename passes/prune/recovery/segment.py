"""A part of a graph as a graph of its own, from tensors that are given to others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow, Node


@tvm.transform.module_pass(opt_level=0, name="Segment")
class Segment:
    """Let `main` compute some tensors from others, whatever computes these.

    Before::

        def main(x):
            a = conv2d(x, const w1)
            b = relu(a)
            return conv2d(b, const w2)

    After, with `given` ("a",) and `wanted` ("b",)::

        def main(a):
            b = relu(a)
            return (b,)

    Names are those of `Dataflow`; parameters are in the order of `given`, results in that of
    `wanted`. Raises ValueError for a name that no tensor has, and if `wanted` depend on a
    parameter of `main` that is not given.
    """

    def __init__(self, given: Sequence[str], wanted: Sequence[str]) -> None:
        self.given = tuple(given)
        self.wanted = tuple(wanted)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return segment(module, self.given, self.wanted)


def segment(module: tvm.IRModule, given: Sequence[str], wanted: Sequence[str]) -> tvm.IRModule:
    """`Segment(given, wanted)` of a module."""
    graph = Dataflow(module)
    begin = [_named(graph, name) for name in given]
    end = [_named(graph, name) for name in wanted]
    needed = between(graph, begin, end)
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(name, node.variable.ty) for name, node in zip(given, begin, strict=True)
    ]
    known = {node.variable: new for node, new in zip(begin, parameters, strict=True)}
    with builder.function("main", parameters):
        with builder.dataflow():
            for node in needed:
                if node.value is None:
                    raise ValueError(f"{node.name} is neither given nor computed")
                known[node.variable] = builder.emit(_with(node.value, known), node.name)
            results = [builder.emit_output(known[node.variable]) for node in end]
        builder.emit_func_output(relax.Tuple(results))
    return relax.transform.CanonicalizeBindings()(builder.get())


def between(graph: Dataflow, begin: Collection[Node], end: Collection[Node]) -> list[Node]:
    """What has to be computed for `end` if `begin` is there, in order."""
    found: set[Node] = set()
    pending = [node for node in end if node not in set(begin)]
    stops = set(begin)
    while pending:
        node = pending.pop()
        if node in found or node in stops:
            continue
        found.add(node)
        pending.extend(node.operands)
    return sorted(found, key=lambda node: node.index)


def _named(graph: Dataflow, name: str) -> Node:
    node = graph.named(name)
    if node is None:
        raise ValueError(f"no tensor of `main` is named {name}")
    return node


def _with(value: relax.Expr, known: dict[relax.Var, relax.Expr]) -> relax.Expr:
    """A value with its operands replaced."""
    if isinstance(value, relax.Var):
        return known[value]
    if isinstance(value, relax.Call):
        arguments = [_with(argument, known) for argument in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_with(element, known) for element in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_with(value.tuple_value, known), value.index)
    return value
