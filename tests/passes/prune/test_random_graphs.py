"""Removed is zeroed, in graphs put together at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from graph_checks import execute, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_checks import Graph, drop, free
from tvm import relax

from tinsmith.passes.prune import shrink, zero

op, nn = relax.op, relax.op.nn

# Operators on feature maps; `pick` chooses one of those that are there.
Step = Callable[["Network"], relax.Var]


class Network:
    """Feature maps of the same extents, each computed from some of those before."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.random = np.random.default_rng(1)
        self.maps = [graph.conv(graph.inputs[0], 8, 3)]

    def pick(self) -> relax.Var:
        return self.maps[max(0, len(self.maps) - 1 - int(self.random.integers(3)))]


def channels(x: relax.Var) -> int:
    return int(x.ty.shape.values[1])


def conv(n: Network) -> relax.Var:
    return n.graph.conv(n.pick(), int(n.random.choice([6, 8, 12])), 3)


def depthwise(n: Network) -> relax.Var:
    x = n.pick()
    return n.graph.conv(x, channels(x), 3, groups=channels(x))


def grouped(n: Network) -> relax.Var:
    return n.graph.conv(n.pick(), 12, 1, groups=2)


def batch_norm(n: Network) -> relax.Var:
    return n.graph.batch_norm(n.pick())


def activation(n: Network) -> relax.Var:
    kind = [nn.relu, nn.silu, op.sigmoid, op.tanh][n.random.integers(4)]
    return n.graph.bind(kind(n.pick()))


def residual(n: Network) -> relax.Var:
    x, y = n.pick(), n.pick()
    if channels(x) != channels(y):
        y = n.graph.conv(y, channels(x))
    return n.graph.bind(op.add(x, y))


def concat(n: Network) -> relax.Var:
    return n.graph.bind(op.concat([n.pick(), n.pick()], axis=1))


def gate(n: Network) -> relax.Var:
    """Halves of one tensor multiplied."""
    parts = n.graph.bind(op.split(n.pick(), 2, axis=1))
    first, second = (n.graph.bind(relax.TupleGetItem(parts, i)) for i in range(2))
    return n.graph.bind(op.multiply(first, second))


def squeeze_excite(n: Network) -> relax.Var:
    x = n.pick()
    pooled = n.graph.bind(op.mean(x, [2, 3], keepdims=True))
    inner = n.graph.bind(nn.relu(n.graph.conv(pooled, 4)))
    scale = n.graph.bind(op.sigmoid(n.graph.conv(inner, channels(x))))
    return n.graph.bind(op.multiply(x, scale))


def cut(n: Network) -> relax.Var:
    x = n.pick()
    return n.graph.bind(op.strided_slice(x, [1], [channels(x) // 4], [channels(x)]))


def widen(n: Network) -> relax.Var:
    return n.graph.bind(nn.pad(n.pick(), [0, 0, 1, 3, 0, 0, 0, 0]))


def shuffle(n: Network) -> relax.Var:
    x = n.pick()
    parts = n.graph.bind(op.reshape(x, (1, 2, channels(x) // 2, 4, 4)))
    turned = n.graph.bind(op.permute_dims(parts, [0, 2, 1, 3, 4]))
    return n.graph.bind(op.reshape(turned, (1, channels(x), 4, 4)))


def tokens(n: Network) -> relax.Var:
    """There and back: channels last, with a product on the way."""
    x = n.pick()
    last = n.graph.bind(op.permute_dims(x, [0, 2, 3, 1]))
    flat = n.graph.bind(op.reshape(last, (1, 16, channels(x))))
    made = n.graph.bind(nn.gelu(n.graph.dense(flat, 10)))
    turned = n.graph.bind(op.permute_dims(made, [0, 2, 1]))
    return n.graph.bind(op.reshape(turned, (1, 10, 4, 4)))


STEPS: tuple[Step, ...] = (
    conv,
    depthwise,
    grouped,
    batch_norm,
    activation,
    residual,
    concat,
    gate,
    squeeze_excite,
    cut,
    widen,
    shuffle,
    tokens,
)


def build(steps: list[Step], flat: bool) -> Graph:
    graph = Graph(x=(1, 3, 4, 4))
    network = Network(graph)
    for step in steps:
        # An odd number of channels cannot be halved.
        if step in (gate, shuffle, grouped) and any(channels(x) % 2 for x in network.maps):
            continue
        network.maps.append(step(network))
    last = network.maps[-1]
    if flat:
        graph.dense(graph.bind(op.reshape(last, (1, channels(last) * 16))), 5)
    else:
        graph.dense(graph.bind(op.mean(last, [2, 3])), 5)
    return graph


@settings(derandomize=True, deadline=None, max_examples=12)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=3, max_size=9), flat=st.booleans())
def test_removed_is_zeroed(steps: list[Step], flat: bool) -> None:
    graph = build(steps, flat)
    module = graph.module(graph.last)
    keep = {group.index: drop(group) for group in free(module) if not group.inexact}
    inputs = random_inputs(module)
    expected, actual = (execute(step(module, keep), inputs)[0] for step in (zero, shrink))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
