"""Weights set to zero by threshold, by ratio, and N of every M."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import constant, constant_array
from tinsmith.passes.prune.sparsify import (
    SparsifyWeights,
    below,
    largest_of,
    smallest,
    zeros_by_layer,
)


def network(layout: str = "OIHW") -> tvm.IRModule:
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((8, 4, 3, 3)).astype(np.float32)
    matrix = generator.standard_normal((8, 5)).astype(np.float32)
    data, weights = ("NCHW", kernel) if layout == "OIHW" else ("NHWC", kernel.transpose(2, 3, 1, 0))
    shape = (1, 4, 7, 7) if layout == "OIHW" else (1, 7, 7, 4)
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(
                relax.op.nn.conv2d(
                    x, constant(weights), data_layout=data, kernel_layout=layout, out_layout=data
                ),
                "y",
            )
            pooled = builder.emit(relax.op.mean(y, [2, 3] if data == "NCHW" else [1, 2]), "pooled")
            scores = builder.emit_output(relax.op.matmul(pooled, constant(matrix)), "scores")
        builder.emit_func_output(scores)
    return builder.get()


def weights_of(module: tvm.IRModule, name: str) -> np.ndarray:
    node = Dataflow(module).named(name)
    return np.asarray(constant_array(node.value.args[1]))


def test_the_smallest_weights_go() -> None:
    before = network()
    after = SparsifyWeights(smallest(0.25), least=0)(before)
    old, new = weights_of(before, "y"), weights_of(after, "y")
    assert (new == 0).sum() == round(0.25 * old.size)
    np.testing.assert_array_equal(new[new != 0], old[new != 0])
    assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()
    assert zeros_by_layer(after) == {"y": (288, 72), "scores": (40, 10)}


def test_a_threshold_is_a_threshold() -> None:
    before = network()
    after = SparsifyWeights(below(0.5), least=0)(before)
    for name in ("y", "scores"):
        old = weights_of(before, name)
        np.testing.assert_array_equal(weights_of(after, name), np.where(np.abs(old) < 0.5, 0, old))


@pytest.mark.parametrize("layout", ["OIHW", "HWIO"])
def test_two_of_four_channels_in_a_row_stay(layout: str) -> None:
    before = network(layout)
    after = SparsifyWeights(largest_of(2, 4), least=0)(before)
    axes = [layout.index(letter) for letter in "HWIO"]
    rows = weights_of(after, "y").transpose(axes).reshape(-1, 4, 8)
    old = np.abs(weights_of(before, "y").transpose(axes).reshape(-1, 4, 8))
    assert ((rows != 0).sum(1) == 2).all()
    np.testing.assert_allclose(np.abs(rows).sum(1), np.sort(old, axis=1)[:, 2:].sum(1), rtol=1e-6)


def test_inputs_left_over_stay() -> None:
    mask = largest_of(1, 4)(np.ones((7, 2)))
    np.testing.assert_array_equal(mask.sum(0), [4, 4])
    assert mask[4:].all()


def test_small_products_are_left_alone() -> None:
    before = network()
    after = SparsifyWeights(smallest(0.5), least=100)(before)
    np.testing.assert_array_equal(weights_of(after, "scores"), weights_of(before, "scores"))
    assert (weights_of(after, "y") == 0).any()
    tvm.ir.assert_structural_equal(SparsifyWeights(smallest(0.5), least=10**6)(before), before)


def test_depthwise_convolutions_are_left_alone() -> None:
    x = relax.Var("x", relax.TensorType((1, 8, 7, 7), "float32"))
    kernel = np.random.default_rng(0).standard_normal((8, 1, 3, 3)).astype(np.float32)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.conv2d(x, constant(kernel), groups=8), "y")
        builder.emit_func_output(y)
    before = builder.get()
    after = SparsifyWeights(smallest(0.5), least=0)(before)
    tvm.ir.assert_structural_equal(after, before)


@pytest.mark.parametrize("make", [lambda: smallest(1.0), lambda: largest_of(4, 4)])
def test_what_leaves_nothing_is_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
