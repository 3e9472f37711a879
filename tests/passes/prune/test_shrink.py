"""Removing channels gives what zeroing them gives, operator by operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from prune_checks import Graph, assert_equivalent, drop, free
from tvm import relax

from tinsmith.passes.prune import Shrink, find_groups, shrink, zero

op, nn = relax.op, relax.op.nn


def _conv(g: Graph) -> relax.Var:
    return g.conv(g.conv(g.inputs[0], 8, 3), 5, 3)


def _depthwise(g: Graph) -> relax.Var:
    hidden = g.bind(op.clip(g.conv(g.inputs[0], 8), 0, 6))
    return g.conv(g.conv(hidden, 8, 3, groups=8), 5)


def _depthwise_multiplier(g: Graph) -> relax.Var:
    return g.conv(g.conv(g.conv(g.inputs[0], 4), 8, 3, groups=4), 5)


def _grouped_columns(g: Graph) -> relax.Var:
    """Two groups of four channels: the same ones of both are removed."""
    return g.conv(g.conv(g.conv(g.inputs[0], 8), 12, 3, groups=2), 5)


def _grouped_whole(g: Graph) -> relax.Var:
    """Four groups of two channels: whole groups are removed."""
    return g.conv(g.conv(g.conv(g.inputs[0], 8), 12, 3, groups=4), 5)


def _transposed(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 8)
    made = g.bind(nn.conv2d_transpose(hidden, g.const(8, 6, 2, 2), strides=2))
    return g.conv(made, 5)


def _transposed_groups(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 8)
    made = g.bind(nn.conv2d_transpose(hidden, g.const(8, 3, 2, 2), strides=2, groups=2))
    return g.conv(made, 5)


def _transposed_depthwise(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 8)
    made = g.bind(nn.conv2d_transpose(hidden, g.const(8, 1, 2, 2), strides=2, groups=8))
    return g.conv(made, 5)


def _batch_norm(g: Graph) -> relax.Var:
    hidden = g.bind(nn.relu(g.batch_norm(g.conv(g.inputs[0], 8, 3))))
    return g.conv(hidden, 5)


def _residual(g: Graph) -> relax.Var:
    stem = g.batch_norm(g.conv(g.inputs[0], 8))
    inner = g.conv(g.bind(nn.relu(g.conv(stem, 12, 3))), 8)
    return g.conv(g.bind(op.add(inner, stem)), 5)


def _concat(g: Graph) -> relax.Var:
    first, second = g.conv(g.inputs[0], 8), g.conv(g.inputs[0], 6)
    joined = g.bind(op.concat([first, g.inputs[0], second], axis=1))
    return g.conv(g.bind(nn.relu(g.batch_norm(joined))), 5)


def _split(g: Graph) -> relax.Var:
    parts = g.bind(op.split(g.conv(g.inputs[0], 10), [4], axis=1))
    first, second = (g.bind(relax.TupleGetItem(parts, i)) for i in range(2))
    return g.bind(op.add(g.conv(first, 5), g.conv(second, 5)))


def _gated(g: Graph) -> relax.Var:
    """Halves of one tensor that meet again: channels go in pairs."""
    parts = g.bind(op.split(g.conv(g.inputs[0], 12), 2, axis=1))
    first, second = (g.bind(relax.TupleGetItem(parts, i)) for i in range(2))
    return g.conv(g.bind(op.multiply(first, g.bind(op.sigmoid(second)))), 5)


def _slice(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 10)
    first = g.bind(op.strided_slice(hidden, [1, 2], [0, 1], [4, 8], [1, 2]))
    second = g.bind(op.strided_slice(hidden, [1, 2], [4, 1], [10, 8], [1, 2]))
    return g.bind(op.add(g.conv(first, 5), g.conv(second, 5)))


def _pad(g: Graph) -> relax.Var:
    """The shortcut of a ResNet for CIFAR-10: a channel here is added to zeros there."""
    hidden = g.conv(g.inputs[0], 6)
    wide = g.bind(nn.pad(hidden, [0, 0, 2, 4, 0, 0, 0, 0]))
    return g.conv(g.bind(op.add(g.conv(hidden, 12, 3), wide)), 5)


def _spatial_pad(g: Graph) -> relax.Var:
    padded = g.bind(nn.pad(g.conv(g.inputs[0], 6), [0, 0, 0, 0, 1, 1, 2, 0], pad_value=1.5))
    return g.conv(padded, 5, 3)


def _pooling(g: Graph) -> relax.Var:
    hidden = g.bind(nn.max_pool2d(g.conv(g.inputs[0], 8), (3, 3), (2, 2), (1, 1)))
    hidden = g.bind(nn.avg_pool2d(hidden, (2, 2), (1, 1)))
    hidden = g.bind(relax.op.image.resize2d(hidden, (5, 7), layout="NCHW"))
    pooled = g.bind(op.mean(hidden, [2, 3]))
    return g.dense(pooled, 5)


def _flatten(g: Graph) -> relax.Var:
    hidden = g.bind(nn.relu(g.conv(g.inputs[0], 8)))
    return g.dense(g.bind(op.reshape(hidden, (1, 8 * 64))), 5)


def _transposed_flatten(g: Graph) -> relax.Var:
    turned = g.bind(op.permute_dims(g.conv(g.inputs[0], 8), [0, 2, 3, 1]))
    return g.dense(g.bind(op.reshape(turned, (1, 8 * 64))), 5)


def _shuffle(g: Graph) -> relax.Var:
    """A channel shuffle: channels of the same place in their group go together."""
    hidden = g.bind(op.reshape(g.conv(g.inputs[0], 12), (1, 3, 4, 8, 8)))
    turned = g.bind(op.permute_dims(hidden, [0, 2, 1, 3, 4]))
    return g.conv(g.bind(op.reshape(turned, (1, 12, 8, 8))), 5)


def _depth_to_space(g: Graph) -> relax.Var:
    hidden = g.bind(op.reshape(g.conv(g.inputs[0], 24), (1, 6, 2, 2, 8, 8)))
    turned = g.bind(op.permute_dims(hidden, [0, 1, 4, 2, 5, 3]))
    return g.conv(g.bind(op.reshape(turned, (1, 6, 16, 16))), 5)


def _squeeze_excite(g: Graph) -> relax.Var:
    hidden = g.bind(nn.silu(g.conv(g.inputs[0], 8, 3)))
    pooled = g.bind(op.mean(hidden, [2, 3], keepdims=True))
    inner = g.bind(nn.relu(g.conv(pooled, 4)))
    gate = g.bind(op.sigmoid(g.conv(inner, 8)))
    return g.conv(g.bind(op.multiply(hidden, gate)), 5)


def _hard_swish(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 8)
    shifted = g.bind(op.clip(g.bind(op.add(hidden, relax.const(np.float32(3)))), 0, 6))
    scaled = g.bind(op.divide(g.bind(op.multiply(hidden, shifted)), relax.const(np.float32(6))))
    return g.conv(scaled, 5)


def _sigmoid(g: Graph) -> relax.Var:
    """What is not zero at zero reaches a consumer."""
    return g.conv(g.bind(op.sigmoid(g.conv(g.inputs[0], 8))), 5, 3)


def _prelu(g: Graph) -> relax.Var:
    return g.conv(g.bind(nn.prelu(g.conv(g.inputs[0], 8), g.const(8), 1)), 5)


def _channel_constants(g: Graph) -> relax.Var:
    halves = relax.const(np.full((8, 1, 1), 2, np.float32))
    hidden = g.bind(op.divide(g.conv(g.inputs[0], 8), halves))
    hidden = g.bind(op.minimum(hidden, g.const(1, 8, 1, 1)))
    hidden = g.bind(op.subtract(hidden, g.const(8, 8, 8)))
    return g.conv(g.bind(op.multiply(hidden, g.const(1, 1, 8, 8))), 5)


def _group_norm(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 12)
    return g.conv(g.bind(nn.group_norm(hidden, g.const(12), g.const(12), 4, 1, [2, 3])), 5)


def _instance_norm(g: Graph) -> relax.Var:
    hidden = g.conv(g.inputs[0], 6)
    return g.conv(g.bind(nn.instance_norm(hidden, g.const(6), g.const(6), 1, [2, 3])), 5)


def _dense_on_the_left(g: Graph) -> relax.Var:
    tokens = g.bind(op.reshape(g.inputs[0], (3, 64)))
    hidden = g.bind(op.add(g.bind(op.matmul(g.const(10, 3), tokens)), g.const(10, 1)))
    return g.bind(op.matmul(g.const(5, 10), g.bind(nn.gelu(hidden))))


def _mixer(g: Graph) -> relax.Var:
    """Products along tokens leave channels alone."""
    tokens = g.bind(op.reshape(g.conv(g.inputs[0], 8), (1, 8, 64)))
    mixed = g.dense(tokens, 16)
    return g.dense(g.bind(op.permute_dims(mixed, [0, 2, 1])), 5)


def _channel_sum(g: Graph) -> relax.Var:
    return g.bind(op.sum(g.bind(nn.relu(g.conv(g.inputs[0], 8))), [1]))


def _attention(g: Graph) -> relax.Var:
    """Three heads of four channels; Q, K and V in one product, taken apart by a split."""
    tokens = g.bind(op.permute_dims(g.bind(op.reshape(g.inputs[0], (1, 3, 64))), [0, 2, 1]))
    joint = g.bind(op.reshape(g.dense(tokens, 36), (1, 64, 3, 3, 4)))
    turned = g.bind(op.permute_dims(joint, [2, 0, 3, 1, 4]))
    q, k, v = (g.bind(op.take(turned, relax.const(np.array(i, "int64")), axis=0)) for i in range(3))
    scores = g.bind(op.matmul(q, g.bind(op.permute_dims(k, [0, 1, 3, 2]))))
    weights = g.bind(nn.softmax(g.bind(op.multiply(scores, relax.const(np.float32(0.5))))))
    mixed = g.bind(op.permute_dims(g.bind(op.matmul(weights, v)), [0, 2, 1, 3]))
    return g.dense(g.bind(op.reshape(mixed, (1, 64, 12))), 5)


def _single_head(g: Graph) -> relax.Var:
    tokens = g.bind(op.permute_dims(g.bind(op.reshape(g.inputs[0], (1, 3, 64))), [0, 2, 1]))
    q, k, v = g.dense(tokens, 6), g.dense(tokens, 6), g.dense(tokens, 8)
    weights = g.bind(nn.softmax(g.bind(op.matmul(q, g.bind(op.permute_dims(k, [0, 2, 1]))))))
    return g.dense(g.bind(op.matmul(weights, v)), 5)


def _shared_weights(g: Graph) -> relax.Var:
    """The same convolution of two tensors."""
    weights, bias = g.const(8, 4, 1, 1), g.const(1, 8, 1, 1)
    made = [
        g.bind(op.add(g.bind(nn.conv2d(g.conv(g.inputs[0], 4), weights)), bias)) for _ in range(2)
    ]
    return g.conv(g.bind(op.concat(made, axis=1)), 5)


def _image_of_features(g: Graph) -> relax.Var:
    """Channels of one operator are columns of pixels for the next: none can go."""
    features = g.dense(g.bind(op.reshape(g.inputs[0], (24, 8))), 6)
    return g.conv(g.conv(g.bind(op.reshape(features, (1, 1, 24, 6))), 8, 3), 5)


# What is built, how many groups are free, and the units of each.
CASES: dict[Callable[[Graph], relax.Var], list[int]] = {
    _conv: [8],
    _depthwise: [8],
    _depthwise_multiplier: [4],
    _grouped_columns: [4, 6],
    _grouped_whole: [4],
    _transposed: [8, 6],
    _transposed_groups: [4, 3],
    _transposed_depthwise: [8],
    _batch_norm: [8],
    _residual: [8, 12],
    _concat: [8, 6],
    _split: [4, 6],
    _gated: [6],
    _slice: [4, 6],
    _pad: [6, 6],
    _spatial_pad: [6],
    _pooling: [8],
    _flatten: [8],
    _transposed_flatten: [8],
    _shuffle: [4],
    _depth_to_space: [6],
    _squeeze_excite: [8, 4],
    _hard_swish: [8],
    _sigmoid: [8],
    _prelu: [8],
    _channel_constants: [8],
    _group_norm: [4],
    _instance_norm: [6],
    _dense_on_the_left: [10],
    _mixer: [8],
    _channel_sum: [8],
    _attention: [3],
    _single_head: [6, 8],
    _shared_weights: [4, 8],
    _image_of_features: [8],
}


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__.strip("_"))
def test_removed_is_zeroed(build: Callable[[Graph], relax.Var]) -> None:
    graph = Graph(x=(1, 3, 8, 8))
    module = graph.module(build(graph))
    groups = free(module)
    assert [group.units for group in groups] == CASES[build]
    assert not any(group.inexact for group in groups)
    assert_equivalent(module, {group.index: drop(group) for group in groups})


@pytest.mark.parametrize("step", [shrink, zero], ids=["shrink", "zero"])
@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({2: [0]}, "there is no group 2: the module has 2"),
        ({0: []}, r"group 0 \(v0\) has to keep a unit"),
        ({0: [3, 8]}, r"group 0 \(v0\) has units 0 to 7"),
        ({1: [0]}, r"group 1 \(v2\) cannot be pruned: is a graph output"),
    ],
)
def test_refusals(step: Callable, keep: dict[int, list[int]], message: str) -> None:
    graph = Graph(x=(1, 3, 8, 8))
    module = graph.module(_conv(graph))
    with pytest.raises(ValueError, match=message):
        step(module, {group: np.array(units, int) for group, units in keep.items()})


def test_groups_that_stay_whole_change_nothing() -> None:
    graph = Graph(x=(1, 3, 8, 8))
    module = graph.module(_residual(graph))
    assert shrink(module, {}).same_as(module)
    everything = {group.index: np.arange(group.units) for group in find_groups(module)}
    assert shrink(module, everything).same_as(module)


def test_shrinking_is_deterministic_and_goes_on() -> None:
    graph = Graph(x=(1, 3, 8, 8))
    module = graph.module(_squeeze_excite(graph))
    first = Shrink({0: np.array([5, 0, 2, 3])})(module)
    tvm.ir.assert_structural_equal(first, shrink(module, {0: np.array([0, 2, 3, 5])}))
    again = find_groups(first)
    assert [group.units for group in again.prunable] == [4, 4]
    twice = shrink(first, {0: np.array([1, 3])})
    tvm.ir.assert_structural_equal(twice, shrink(module, {0: np.array([2, 5])}))
