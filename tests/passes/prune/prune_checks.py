"""What the tests of pruning share: small graphs built operator by operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from graph_checks import assert_same_interface, execute, random_inputs
from tvm import relax

from tinsmith.passes.prune import Group, Groups, find_groups, shrink, zero


class Graph:
    """Builds `main` binding by binding; weights are random and different each time."""

    def __init__(self, seed: int = 0, **inputs: Sequence[int]) -> None:
        self._random = np.random.default_rng(seed)
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.Binding] = []
        self.inputs = [
            relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in inputs.items()
        ]

    @property
    def last(self) -> relax.Var:
        """What was bound last."""
        return self._bindings[-1].var

    def array(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape).astype(np.float32) / np.float32(
            np.sqrt(max(np.prod(shape[1:], dtype=int), 1))
        )

    def const(self, *shape: int) -> relax.Expr:
        return relax.const(self.array(*shape))

    def bind(self, value: relax.Expr, name: str | None = None) -> relax.Var:
        value = self._builder.normalize(value)
        variable = relax.DataflowVar(name or f"v{len(self._bindings)}", value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable

    def conv(
        self, x: relax.Expr, outputs: int, kernel: int = 1, groups: int = 1, name: str | None = None
    ) -> relax.Var:
        """A convolution that keeps the extents, and its bias."""
        channels = int(x.ty.shape.values[1]) // groups
        weights = self.const(outputs, channels, kernel, kernel)
        made = self.bind(relax.op.nn.conv2d(x, weights, padding=kernel // 2, groups=groups), name)
        return self.bind(relax.op.add(made, self.const(1, outputs, 1, 1)))

    def dense(self, x: relax.Expr, outputs: int, name: str | None = None) -> relax.Var:
        """A product with weights on the right, and its bias."""
        weights = self.const(int(x.ty.shape.values[-1]), outputs)
        made = self.bind(relax.op.matmul(x, weights), name)
        return self.bind(relax.op.add(made, self.const(outputs)))

    def batch_norm(self, x: relax.Expr) -> relax.Var:
        count = int(x.ty.shape.values[1])
        positive = relax.const(np.abs(self.array(count)) + np.float32(0.5))
        parameters = [self.const(count) for _ in range(3)]
        made = self.bind(relax.op.nn.batch_norm(x, *parameters, positive, 1))
        return self.bind(relax.TupleGetItem(made, 0))

    def module(self, *results: relax.Var) -> tvm.IRModule:
        value = results[0] if len(results) == 1 else relax.Tuple(list(results))
        value = self._builder.normalize(value)
        out = relax.Var("out", value.ty)
        bindings = [*self._bindings, relax.VarBinding(out, value)]
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], out)
        function = relax.Function(self.inputs, body, out.ty)
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        return relax.transform.Normalize()(module)


def members(groups: Groups, group: Group) -> list[tuple[tuple[int, ...], int, int, str]]:
    """Shape of the constant, axis, block and role of each member."""
    return [
        (groups.constants[m.constant].shape, m.axis, m.indices.shape[1], m.role)
        for m in group.members
    ]


def free(module: tvm.IRModule) -> list[Group]:
    """The groups that can be pruned; every index map is checked on the way."""
    groups = find_groups(module)
    for group in groups:
        for member in group.members:
            assert member.indices.shape[0] == group.units
            flat = member.indices.reshape(-1)
            assert len(set(flat.tolist())) == flat.size
            assert flat.max() < groups.constants[member.constant].shape[member.axis]
    return list(groups.prunable)


def drop(group: Group, share: float = 0.4, seed: int = 0) -> np.ndarray:
    """Units to keep: a random choice without about that share of them, at least one."""
    random = np.random.default_rng(seed + group.index)
    count = max(1, group.units - max(1, round(share * group.units)))
    return random.permutation(group.units)[:count]


def assert_equivalent(module: tvm.IRModule, keep: dict[int, np.ndarray]) -> tvm.IRModule:
    """Zeroing and removing give the same outputs; answers the smaller module."""
    smaller, zeroed = shrink(module, keep), zero(module, keep)
    assert_same_interface(module, smaller)
    inputs = random_inputs(module)
    whole, expected, actual = (execute(each, inputs) for each in (module, zeroed, smaller))
    for before, one, other in zip(whole, expected, actual, strict=True):
        scale = float(np.abs(one).max())
        assert scale > 0
        # The channels mattered.
        assert np.abs(before - one).max() > 1e-3 * scale
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * scale)
    return smaller
