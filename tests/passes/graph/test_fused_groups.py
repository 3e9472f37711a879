"""Which operators a fused kernel computes."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph import Fuse, Legalize
from tinsmith.passes.graph.fused_groups import computed_by_kernel, kernel_calls, unique_names

_RANDOM = np.random.default_rng(0)


def _constant(*shape: int) -> relax.Expr:
    return relax.const(_RANDOM.standard_normal(shape).astype("float32"))


class _Graph:
    """Builds `main` of one input, with chosen names of variables."""

    def __init__(self, *shape: int) -> None:
        self.x = relax.Var("x", relax.TensorType(shape, "float32"))
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.Binding] = []

    def bind(self, name: str, value: relax.Expr, output: bool = False) -> relax.Var:
        value = self._builder.normalize(value)
        variable = (relax.Var if output else relax.DataflowVar)(name, value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable

    def module(self) -> tvm.IRModule:
        last = self._bindings[-1].var
        body = relax.SeqExpr([relax.DataflowBlock(self._bindings)], last)
        function = relax.Function([self.x], body, last.ty)
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        return relax.transform.Normalize()(module)

    def fused(self) -> tvm.IRModule:
        return Fuse()(Legalize({})(self.module()))


def _members(module: tvm.IRModule) -> tuple[tuple[str, ...], ...]:
    return tuple(call.members for call in kernel_calls(module))


def test_layers_of_one_structure_share_a_kernel_and_keep_their_names() -> None:
    graph = _Graph(4, 8)
    value: relax.Var = graph.x
    for index in range(3):
        product = graph.bind(f"layer{index}", relax.op.matmul(value, _constant(8, 8)))
        value = graph.bind(f"relu{index}", relax.op.nn.relu(product), output=index == 2)
    after = graph.fused()
    assert _members(after) == tuple((f"layer{i}", f"relu{i}") for i in range(3))
    callees = {binding.value.args[0].name_hint for binding in after["main"].body.blocks[0].bindings}
    assert len(callees) == 1
    every = tuple(name for group in _members(after) for name in group)
    assert computed_by_kernel(after) == {callees.pop(): every}
    assert list(unique_names(after["main"]).values())[:3] == ["x", "relu0", "relu1"]


def test_branches_of_one_tensor_are_told_apart_by_their_weights() -> None:
    graph = _Graph(4, 8)
    left = graph.bind("left", relax.op.matmul(graph.x, _constant(8, 8)))
    right = graph.bind("right", relax.op.matmul(graph.x, _constant(8, 8)))
    up = graph.bind("up", relax.op.exp(right))
    total = graph.bind("total", relax.op.add(left, up))
    graph.bind("out", relax.op.reshape(total, (32,)), output=True)
    groups = _members(graph.fused())
    assert sorted(name for group in groups for name in group) == ["left", "right", "total", "up"]
    assert ("right", "up") in groups or ("left", "total") in groups


def test_readers_are_found_through_views() -> None:
    graph = _Graph(4, 8)
    first = graph.bind("first", relax.op.matmul(graph.x, _constant(8, 8)))
    flat = graph.bind("flat", relax.op.reshape(first, (2, 16)))
    left = graph.bind("left", relax.op.matmul(flat, _constant(16, 16)))
    turned = graph.bind("turned", relax.op.permute_dims(flat))
    graph.bind("out", relax.op.matmul(left, turned), output=True)
    calls = {call.members[-1]: call for call in kernel_calls(graph.fused())}
    names = list(calls)
    assert {names[reader] for reader in calls["first"].readers} == {"left", "turned"}
    assert calls["out"].readers == ()


def test_equal_names_are_numbered() -> None:
    graph = _Graph(4, 8)
    first = graph.bind("y", relax.op.matmul(graph.x, _constant(8, 8)))
    graph.bind("y", relax.op.matmul(first, _constant(8, 8)), output=True)
    assert _members(graph.fused()) == (("y",), ("y.2",))


def test_of_a_graph_that_was_not_fused_nothing_is_known() -> None:
    graph = _Graph(2, 2)
    graph.bind("out", relax.op.exp(graph.x), output=True)
    assert _members(Legalize({})(graph.module())) == ((),)
