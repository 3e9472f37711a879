"""SmoothQuant keeps the function and evens out outlier channels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from quantize_checks import Graph, array
from tvm import relax

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import assert_computes_the_same, assert_left_alone

from tinsmith.passes.quantize.smooth_quant import SmoothQuant, smoothable_tensors


def _square() -> relax.Expr:
    return relax.const(array(8, 8))


def _block(result_reads_norm: bool = False):
    graph = Graph(6, 8)
    gamma = np.array([1, 1, 30, 1, 1, 0.1, 1, 1], np.float32)
    norm = graph.bind(
        "norm",
        relax.op.nn.layer_norm(graph.input, relax.const(gamma), relax.const(array(8)), axes=[-1]),
    )
    q = graph.bind("q", relax.op.matmul(norm, _square()))
    other = relax.op.exp(norm) if result_reads_norm else relax.op.matmul(norm, _square())
    k = graph.bind("k", other)
    return graph.module(graph.bind("y", relax.op.add(q, k))), gamma


def test_the_function_stays_and_the_outlier_shrinks() -> None:
    module, gamma = _block()
    assert smoothable_tensors(module) == ("norm",)
    after = assert_computes_the_same(SmoothQuant({"norm": 3 * gamma}), module)
    scaled = after["main"].body.blocks[0].bindings[0].value.args[1].value.numpy()
    assert scaled.max() / scaled.min() < 0.2 * gamma.max() / gamma.min()
    full = SmoothQuant({"norm": gamma}, strength=1.0)(module)
    even = full["main"].body.blocks[0].bindings[0].value.args[1].value.numpy()
    np.testing.assert_allclose(even, even[0], rtol=1e-5)


def test_a_norm_that_others_read_is_left_alone() -> None:
    module, gamma = _block(result_reads_norm=True)
    assert smoothable_tensors(module) == ()
    assert_left_alone(SmoothQuant({"norm": gamma}), module)


def test_reshapes_may_stand_between() -> None:
    graph = Graph(2, 3, 8)
    ones = relax.const(np.ones(8, np.float32))
    norm = graph.bind("norm", relax.op.nn.layer_norm(graph.input, ones, ones, axes=[-1]))
    rows = graph.bind("rows", relax.op.reshape(norm, (6, 8)))
    module = graph.module(graph.bind("q", relax.op.matmul(rows, _square())))
    assert smoothable_tensors(module) == ("norm",)
    assert_computes_the_same(SmoothQuant({"norm": np.arange(1.0, 9)}), module)

    graph = Graph(2, 3, 8)
    norm = graph.bind("norm", relax.op.nn.layer_norm(graph.input, ones, ones, axes=[-1]))
    rows = graph.bind("rows", relax.op.reshape(norm, (3, 16)))
    module = graph.module(graph.bind("q", relax.op.matmul(rows, relax.const(array(16, 8)))))
    assert smoothable_tensors(module) == ()


def test_options_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="strength must be between 0 and 1"):
        SmoothQuant({}, strength=2)
    module, _ = _block()
    with pytest.raises(ValueError, match="has 8 channels, its ranges have 3"):
        SmoothQuant({"norm": np.ones(3)})(module)
