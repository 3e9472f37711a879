"""Equalisation and bias correction: the function stays, the error of quantisation falls."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from quantize_checks import (
    Graph,
    array,
    attention,
    convolve,
    quantized,
    rounded_weights,
    two_convolutions,
)
from tvm import relax

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import (
    assert_computes_the_same,
    assert_left_alone,
    execute,
    operators,
    random_inputs,
)

from tinsmith.passes.quantize.bias_correction import (
    ChannelMeanObserver,
    CorrectBias,
    operand_tensors,
)
from tinsmith.passes.quantize.cross_layer_equalization import (
    CrossLayerEqualization,
    equalizable_tensors,
)
from tinsmith.targets.x86.backend import FORMATS as X86


def _uneven(*shape: int) -> np.ndarray:
    """Weights whose output channels differ by up to a factor of 100."""
    return (array(*shape) * np.logspace(-1, 1, shape[-1])).astype(np.float32)


def _inverted_residual() -> Graph:
    """conv -> clip -> depthwise -> relu -> conv, added to its input, read by a last conv."""
    graph = Graph(1, 6, 6, 4)
    stem = graph.conv("stem", graph.input, _uneven(1, 1, 4, 8))
    wide = graph.conv("wide", stem, _uneven(1, 1, 8, 16))
    biased = graph.bind("biased", relax.op.add(wide, relax.const(array(1, 1, 1, 16))))
    clipped = graph.bind("clipped", relax.op.clip(biased, 0, 6))
    deep = graph.conv("deep", clipped, _uneven(3, 3, 1, 16), padding=1, groups=16)
    positive = graph.bind("positive", relax.op.nn.relu(deep))
    narrow = graph.conv("narrow", positive, _uneven(1, 1, 16, 8))
    graph.residual = graph.bind("residual", relax.op.add(stem, narrow))
    return graph


def test_equalisation_keeps_the_function_and_evens_the_ranges() -> None:
    graph = _inverted_residual()
    mean = graph.bind("mean", relax.op.mean(graph.residual, [1, 2]))
    module = graph.module(graph.bind("y", relax.op.matmul(mean, relax.const(array(8, 3)))))
    assert set(equalizable_tensors(module)) == {"stem", "clipped", "positive", "mean"}
    assert_computes_the_same(CrossLayerEqualization(), module)
    ranges = {
        "stem": np.logspace(-1, 1, 8),
        "mean": np.logspace(-1, 0, 8),
        "clipped": np.linspace(1, 6, 16),
        "positive": np.logspace(-2, 1, 16),
    }
    assert_computes_the_same(CrossLayerEqualization(ranges), module)


def test_a_depthwise_operand_gets_equal_ranges() -> None:
    graph = _inverted_residual()
    module = graph.module(graph.conv("y", graph.residual, array(1, 1, 8, 3)))
    ranges = np.linspace(1, 6, 16)
    others = {name: np.ones(8) for name in ("stem", "residual")}
    step = CrossLayerEqualization({"clipped": ranges, "positive": np.ones(16), **others})
    after = step(module)
    bounds = [
        binding.value.args[1].value.numpy().reshape(-1)
        for binding in after["main"].body.blocks[0].bindings
        if binding.value.op.name == "relax.minimum"
    ]
    assert len(bounds) == 1
    # The bound of 6 was divided by s, which is proportional to the ranges.
    np.testing.assert_allclose(bounds[0] * ranges, bounds[0][0] * ranges[0], rtol=1e-5)


def test_results_and_what_other_operators_read_are_left_alone() -> None:
    graph = Graph(1, 6, 6, 4)
    a = graph.conv("a", graph.input, _uneven(1, 1, 4, 8))
    b = graph.conv("b", a, _uneven(1, 1, 8, 8))
    added = graph.bind("added", relax.op.add(a, b))
    module = graph.module(graph.bind("y", relax.op.nn.softmax(added)))
    assert equalizable_tensors(module) == ()
    assert_left_alone(CrossLayerEqualization(), module)


def test_bias_correction_removes_the_mean_error_of_weights() -> None:
    module, first, bias, _ = two_convolutions()
    assert operand_tensors(module, X86) == {"x": -1, "hidden": -1}
    means = np.array([0.5, -1.0, 2.0])
    after = CorrectBias({"x": means}, X86)(module)
    assert operators(after) == operators(module)
    changed = next(
        binding.value.args[1].value.numpy()
        for binding in after["main"].body.blocks[0].bindings
        if binding.value.op.name == "relax.add"
    )
    # On an image of these means, away from its border.
    image = np.broadcast_to(means, (1, 3, 3, 3)).astype(np.float32)
    error = convolve(image, rounded_weights(first)) - convolve(image, first)
    np.testing.assert_allclose(bias - changed, error, atol=1e-6)


def test_an_operator_without_a_bias_gets_one() -> None:
    module, *_ = two_convolutions()
    after = CorrectBias({"hidden": np.ones(8)}, X86)(module)
    assert operators(after) == [*operators(module), "add"]
    assert operators(quantized(after, {"x": (-3, 3), "hidden": (0, 9)})).count("dequantize") == 4
    (x,) = random_inputs(module)
    difference = execute(after, [x])[0] - execute(module, [x])[0]
    np.testing.assert_allclose(difference - difference[:, :1, :1], 0, atol=1e-5)


def test_channel_means_over_several_samples() -> None:
    observer = ChannelMeanObserver(1)
    samples = array(3, 2, 5, 4, 4)
    for sample in samples:
        observer.update(sample)
    np.testing.assert_allclose(observer.means, samples.mean((0, 1, 3, 4)), rtol=1e-5)


def test_products_of_computed_operands_have_no_weights_to_correct() -> None:
    module = attention()
    assert set(operand_tensors(module, X86)) == {"x"}
    means = {"x": np.ones(8), "turned_q": np.ones(8), "weights": np.ones(6)}
    after = CorrectBias(means, X86)(module)
    assert operators(after).count("add") == 3
