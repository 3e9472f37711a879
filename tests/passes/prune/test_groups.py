"""Dependency groups of small graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from graph_checks import execute, random_inputs
from prune_checks import Graph, free, members
from tvm import relax

from tinsmith.passes.prune import find_groups, replace_constants, shrink

op, nn = relax.op, relax.op.nn


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


def test_heads_take_query_key_value_and_projection_along() -> None:
    """Two heads of three channels over five tokens."""
    graph = Graph(x=(1, 5, 8))

    def heads(x: relax.Expr, axes: list[int]) -> relax.Var:
        return graph.bind(op.permute_dims(graph.bind(op.reshape(x, (1, 5, 2, 3))), axes))

    x = graph.inputs[0]
    q, k, v = (graph.dense(x, 6) for _ in range(3))
    scores = graph.bind(op.matmul(heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1])))
    mixed = graph.bind(op.matmul(graph.bind(nn.softmax(scores)), heads(v, [0, 2, 1, 3])))
    joined = graph.bind(op.reshape(graph.bind(op.permute_dims(mixed, [0, 2, 1, 3])), (1, 5, 6)))
    module = graph.module(graph.dense(joined, 8))
    groups = find_groups(module)
    (attention,) = free(module)
    assert attention.units == 2
    assert members(groups, attention) == [
        ((8, 6), 1, 3, "produces"),
        ((6,), 0, 3, "produces"),
        ((8, 6), 1, 3, "produces"),
        ((6,), 0, 3, "produces"),
        ((8, 6), 1, 3, "produces"),
        ((6,), 0, 3, "produces"),
        ((6, 8), 0, 3, "consumes"),
    ]
    for member in attention.members:
        np.testing.assert_array_equal(member.indices, [[0, 1, 2], [3, 4, 5]])
    by_name = {channels.tensor: channels for channels in attention.tensors}
    assert by_name[scores.name].axis == 1


def test_index_maps_of_concatenation_and_flattening() -> None:
    graph = Graph(x=(1, 3, 2, 2))
    first, second = graph.conv(graph.inputs[0], 4), graph.conv(graph.inputs[0], 2)
    joined = graph.bind(op.concat([first, second], axis=1))
    flat = graph.bind(op.reshape(joined, (1, 24)))
    module = graph.module(graph.dense(flat, 3))
    one, two = free(module)
    np.testing.assert_array_equal(one.role("consumes")[0].indices, np.arange(16).reshape(4, 4))
    np.testing.assert_array_equal(two.role("consumes")[0].indices, np.arange(16, 24).reshape(2, 4))


def test_layer_normalisation_is_not_the_same_with_zeros() -> None:
    graph = Graph(x=(1, 5, 8))
    hidden = graph.dense(graph.inputs[0], 6)
    normed = graph.bind(nn.layer_norm(hidden, graph.const(6), graph.const(6), axes=[-1]))
    module = graph.module(graph.dense(normed, 4))
    (group,) = free(module)
    assert group.inexact == "statistics of relax.nn.layer_norm"
    keep = np.array([0, 2, 5])
    smaller = shrink(module, {group.index: keep})
    weights, bias, gamma, beta, last, shift = (
        np.take(array, keep, axis=axis) if axis is not None else array
        for array, axis in zip(find_groups(module).constants, (1, 0, 0, 0, 0, None), strict=True)
    )
    (x,) = random_inputs(module)
    inner = x @ weights + bias
    centred = inner - inner.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = (scaled * gamma + beta) @ last + shift
    np.testing.assert_allclose(execute(smaller, [x])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda x: op.cumsum(x, 1), "relax.cumsum (read) is not understood"),
        (lambda x: nn.softmax(x, 1), "relax.nn.softmax (read) needs all of it"),
        (lambda x: op.mean(x, [1], keepdims=True), "relax.mean (read) needs all of it"),
        (lambda x: op.max(x, [1], keepdims=True), "relax.max (read) needs all of it"),
    ],
)
def test_what_is_needed_whole_is_frozen(read: Callable, reason: str) -> None:
    graph = Graph(x=(1, 3, 4, 4))
    whole = graph.bind(read(graph.conv(graph.inputs[0], 8)), "read")
    module = graph.module(graph.conv(graph.conv(whole, 6), 5))
    groups = find_groups(module)
    assert groups[0].frozen == reason
    assert [group.units for group in groups.prunable] == [6]


def test_what_meets_the_input_or_an_output_is_frozen() -> None:
    graph = Graph(x=(1, 3, 4, 4))
    same = graph.bind(op.add(graph.conv(graph.inputs[0], 3), graph.inputs[0]))
    shown = graph.conv(same, 6)
    module = graph.module(shown, graph.conv(shown, 5))
    assert [group.frozen for group in find_groups(module)] == [
        "meets an operand without channels in relax.add",
        "is a graph output",
        "is a graph output",
    ]


def test_a_sigmoid_is_not_zero_at_zero() -> None:
    graph = Graph(x=(1, 3, 4, 4))
    hidden = graph.bind(op.sigmoid(graph.conv(graph.inputs[0], 8)))
    (group,) = free(graph.module(graph.conv(hidden, 5)))
    assert not group.role("consumes")[0].reads_zero
    assert not group.inexact


def test_constants_can_be_replaced() -> None:
    graph = Graph(x=(1, 3, 4, 4))
    module = graph.module(graph.conv(graph.conv(graph.inputs[0], 8), 5))
    constants = find_groups(module).constants
    changed = replace_constants(module, {1: constants[1] + 1})
    for before, after in zip(constants, find_groups(changed).constants, strict=True):
        np.testing.assert_array_equal(after, before + (before is constants[1]))
    with pytest.raises(ValueError, match=r"constant 1 is float32\[1, 8, 1, 1\], not float32\[8\]"):
        replace_constants(module, {1: np.zeros(8, np.float32)})


def test_a_module_without_main_is_refused() -> None:
    with pytest.raises(ValueError, match="no Relax function `main`"):
        find_groups(tvm.IRModule({}))
