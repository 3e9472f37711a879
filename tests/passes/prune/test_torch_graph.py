"""Relax graphs in PyTorch: operators against TVM's definitions, batches, gradients, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graph_checks import execute, random_inputs
from prune_checks import Graph
from tvm import relax

from tinsmith.passes.graph import FoldBatchNorm

torch = pytest.importorskip("torch")

from tinsmith.passes.prune.autograd.graph import NoCounterpartError, TorchGraph, scores_name  # noqa: E402
from tinsmith.passes.prune.constants import constant_reads  # noqa: E402

op, nn = relax.op, relax.op.nn
Build = Callable[[Graph, relax.Expr], relax.Expr]


def _norm_parameters(graph: Graph, count: int) -> list[relax.Expr]:
    return [graph.const(count), graph.const(count)]


# On an input of (1, 6, 9, 7).
OPERATORS: dict[str, Build] = {
    "conv": lambda g, x: nn.conv2d(x, g.const(4, 6, 3, 3), padding=1),
    "conv strided": lambda g, x: nn.conv2d(
        x, g.const(4, 6, 3, 2), strides=(2, 1), padding=(0, 1, 2, 0), dilation=(1, 2)
    ),
    "depthwise": lambda g, x: nn.conv2d(x, g.const(12, 1, 3, 3), padding=1, groups=6),
    "transposed": lambda g, x: nn.conv2d_transpose(
        x, g.const(6, 4, 3, 3), strides=2, padding=1, output_padding=1
    ),
    "max pool": lambda g, x: nn.max_pool2d(x, (3, 2), (2, 2), (1, 0, 1, 1)),
    "max pool up": lambda g, x: nn.max_pool2d(x, 2, 2, ceil_mode=True),
    "average": lambda g, x: nn.avg_pool2d(x, 3, 2, 1),
    "average with padding": lambda g, x: nn.avg_pool2d(x, 3, 2, 1, count_include_pad=True),
    "average up": lambda g, x: nn.avg_pool2d(x, 2, 2, ceil_mode=True),
    "adaptive": lambda g, x: nn.adaptive_avg_pool2d(x, (1, 1)),
    "layer norm": lambda g, x: nn.layer_norm(x, *_norm_parameters(g, 7), [-1]),
    "group norm": lambda g, x: nn.group_norm(x, *_norm_parameters(g, 6), 3, 1, [2, 3]),
    "instance norm": lambda g, x: nn.instance_norm(x, *_norm_parameters(g, 6), 1, [2, 3]),
    "rms norm": lambda g, x: nn.rms_norm(x, g.const(7), [-1]),
    "softmax": lambda g, x: nn.softmax(x, 1),
    "log softmax": lambda g, x: nn.log_softmax(x, -1),
    "prelu": lambda g, x: nn.prelu(x, g.const(6)),
    "leaky relu": lambda g, x: nn.leakyrelu(x, 0.2),
    "gelu": lambda g, x: nn.gelu(x),
    "gelu by tanh": lambda g, x: nn.gelu_tanh(x),
    "silu": lambda g, x: nn.silu(x),
    "softplus": lambda g, x: nn.softplus(x),
    "clip": lambda g, x: op.clip(x, -0.5, 0.7),
    "mean": lambda g, x: op.mean(x, [-1, 2], keepdims=True),
    "sum": lambda g, x: op.sum(x, [1]),
    "max": lambda g, x: op.max(x, [2]),
    "variance": lambda g, x: op.variance(x, [1, 3]),
    "reshape": lambda g, x: op.reshape(x, (1, 2, 3, 63)),
    "flatten": lambda g, x: nn.batch_flatten(x),
    "broadcast": lambda g, x: op.add(g.bind(op.broadcast_to(g.const(1, 6, 1, 1), (1, 6, 9, 7))), x),
    "permute": lambda g, x: op.permute_dims(x, [0, 2, 3, 1]),
    "concat": lambda g, x: op.concat([x, g.const(1, 2, 9, 7), x], 1),
    "split": lambda g, x: relax.TupleGetItem(g.bind(op.split(x, [2, 5], 1)), 1),
    "slice": lambda g, x: op.strided_slice(x, [1, 3], [1, 0], [6, 7], [2, 3]),
    "take": lambda g, x: op.take(x, relax.const(np.array([[3, 0], [5, 5]])), 1),
    "squeeze": lambda g, x: op.squeeze(g.bind(op.mean(x, [2], keepdims=True)), [2]),
    "expand": lambda g, x: op.expand_dims(x, [2]),
    "pad": lambda g, x: nn.pad(x, [0, 0, 1, 0, 2, 1, 0, 3], "constant", 0.5),
    "reflect": lambda g, x: nn.pad(x, [0, 0, 0, 0, 2, 1, 0, 3], "reflect"),
    "bilinear": lambda g, x: relax.op.image.resize2d(x, (13, 5), layout="NCHW", method="linear"),
    "nearest": lambda g, x: relax.op.image.resize2d(
        x, (18, 21), layout="NCHW", method="nearest_neighbor",
        coordinate_transformation_mode="asymmetric", rounding_method="floor",
    ),
    "where": lambda g, x: op.where(g.bind(op.less(x, relax.const(0.0))), x, g.bind(op.exp(x))),
    "equal": lambda g, x: op.astype(g.bind(op.equal(x, x)), "float32"),
    "matmul": lambda g, x: op.matmul(x, g.const(7, 5)),
    "product of two": lambda g, x: op.matmul(x, g.bind(op.permute_dims(x, [0, 1, 3, 2]))),
    "stack": lambda g, x: op.stack([x, g.bind(op.negative(x))], 1),
    "divide": lambda g, x: op.divide(x, g.bind(op.maximum(x, relax.const(0.1)))),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_tvm_does(name: str) -> None:
    graph = Graph(x=(1, 6, 9, 7))
    made = graph.bind(OPERATORS[name](graph, graph.inputs[0]))
    module = graph.module(made)
    inputs = random_inputs(module)
    converted = TorchGraph(module)
    with torch.no_grad():
        actual = [tensor.numpy() for tensor in converted(torch.tensor(inputs[0])).values()]
    for one, other in zip(actual, execute(module, inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    # And two samples together what it computes of each.
    others = random_inputs(module, seed=5)
    converted.find_joint([inputs, others])
    assert converted.joint
    with torch.no_grad():
        both = converted(torch.tensor(np.concatenate([inputs[0], others[0]])))
    for one, tensor in zip(actual, both.values(), strict=True):
        np.testing.assert_allclose(tensor[:1].numpy(), one, rtol=1e-4, atol=1e-5)


def _residual() -> tuple[Graph, relax.Var]:
    graph = Graph(x=(1, 3, 8, 8))
    a = graph.bind(nn.relu(graph.batch_norm(graph.conv(graph.inputs[0], 6, 3))))
    b = graph.bind(op.add(graph.conv(a, 6, 3), a))
    pooled = graph.bind(op.mean(b, [2, 3]))
    return graph, graph.dense(pooled, 5, name="product")


def test_weights_and_biases_are_parameters_and_statistics_are_not() -> None:
    graph, scores = _residual()
    module = graph.module(scores)
    converted = TorchGraph(module)
    shapes = sorted(tuple(p.shape) for p in converted.parameters())
    assert shapes == sorted(
        [(6, 3, 3, 3), (1, 6, 1, 1), (6,), (6,), (6, 6, 3, 3), (1, 6, 1, 1), (6, 5), (5,)]
    )
    inputs = random_inputs(module)
    expected = execute(FoldBatchNorm()(module), inputs)[0]
    np.testing.assert_allclose(
        converted(torch.tensor(inputs[0]))["out"].detach().numpy(), expected, rtol=1e-5, atol=1e-5
    )


def test_trained_weights_go_back_into_the_module() -> None:
    graph, scores = _residual()
    module = graph.module(scores)
    converted = TorchGraph(module)
    unchanged = converted.trained_module()
    inputs = random_inputs(module)
    both = [execute(FoldBatchNorm()(each), inputs)[0] for each in (unchanged, module)]
    np.testing.assert_array_equal(*both)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.mul_(1.5)
    changed = converted.trained_module()
    np.testing.assert_allclose(
        execute(FoldBatchNorm()(changed), inputs)[0],
        converted(torch.tensor(inputs[0]))["out"].detach().numpy(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_gradients_are_those_of_differences() -> None:
    graph, scores = _residual()
    module = graph.module(scores)
    converted = TorchGraph(module)
    inputs = torch.tensor(random_inputs(module)[0])
    converted(inputs)["out"].square().sum().backward()
    found = converted.gradients()
    number = next(i for i, c in enumerate(constant_reads(module)) if tuple(c.value.shape) == (6, 5))
    weight = converted.get_parameter(f"c{number}")
    step = 1e-2
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[2, 3] += sign * step
            losses.append(float(converted(inputs)["out"].double().square().sum()))
            weight[2, 3] -= sign * step
    slope = (losses[0] - losses[1]) / (2 * step)
    assert found[number][2, 3] == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_samples_that_meet_are_computed_one_by_one() -> None:
    graph = Graph(x=(1, 4))
    weights = graph.bind(nn.softmax(graph.inputs[0], 0))
    module = graph.module(graph.bind(op.multiply(weights, graph.inputs[0])))
    converted = TorchGraph(module)
    first, second = random_inputs(module), random_inputs(module, seed=1)
    converted.find_joint([first, second])
    assert not converted.joint
    both = converted(torch.tensor(np.concatenate([first[0], second[0]])))["out"]
    np.testing.assert_allclose(both.numpy(), np.concatenate([first[0], second[0]]), rtol=1e-6)


def test_inner_tensors_can_be_watched() -> None:
    graph, scores = _residual()
    module = graph.module(scores)
    found = TorchGraph(module)(torch.tensor(random_inputs(module)[0]), watch=["product", "x"])
    assert found["product"].shape == (1, 5)
    assert found["x"].shape == (1, 3, 8, 8)


def test_the_scores_are_what_the_softmax_reads() -> None:
    graph, scores = _residual()
    assert scores_name(graph.module(graph.bind(nn.softmax(scores, 1)))) == scores.name
    graph, scores = _residual()
    assert scores_name(graph.module(scores)) == scores.name


def test_an_operator_without_counterpart_is_refused_by_name() -> None:
    graph = Graph(x=(1, 4))
    made = graph.bind(op.cumsum(graph.inputs[0], 1), name="running")
    with pytest.raises(NoCounterpartError, match=r"relax\.cumsum \(running\) has no counterpart"):
        TorchGraph(graph.module(made))
    graph = Graph(x=(1, 8, 8, 3))
    made = graph.bind(nn.max_pool2d(graph.inputs[0], 2, layout="NHWC"), name="pooled")
    with pytest.raises(NoCounterpartError, match=r"max_pool2d \(pooled\): the layout NHWC"):
        TorchGraph(graph.module(made))
