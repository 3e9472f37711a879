"""Dependency groups of small graphs."""

from __future__ import annotations

from prune_checks import Graph, free, members
from tvm import relax

from passes.prune import find_groups


def test_a_convolution_and_its_reader() -> None:
    graph = Graph(x=(1, 3, 8, 8))
    hidden = graph.bind(relax.op.nn.relu(graph.conv(graph.inputs[0], 16, 3)), "hidden")
    module = graph.module(graph.conv(hidden, 5, 3))
    groups = find_groups(module)
    first, last = groups
    assert members(groups, first) == [
        ((16, 3, 3, 3), 0, 1, "produces"),
        ((1, 16, 1, 1), 1, 1, "produces"),
        ((5, 16, 3, 3), 1, 1, "consumes"),
    ]
    assert first.units == 16
    assert not first.frozen
    assert last.frozen == "is a graph output"
    assert first.role("consumes")[0].data == "hidden"
    assert first.role("consumes")[0].reads_zero


def test_batch_normalisation_and_residual() -> None:
    graph = Graph(x=(1, 3, 8, 8))
    stem = graph.batch_norm(graph.conv(graph.inputs[0], 8))
    inner = graph.bind(relax.op.nn.relu(graph.conv(stem, 12)))
    total = graph.bind(relax.op.add(graph.batch_norm(graph.conv(inner, 8)), stem))
    module = graph.module(graph.conv(total, 4))
    stage, hidden = free(module)
    assert (stage.units, hidden.units) == (8, 12)
    assert len(stage.role("produces")) == 2 * (2 + 4)
    assert len(stage.role("consumes")) == 2
    assert len(hidden.members) == 3
