"""A layer that a rectifier reads, solved for in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from tvm import relax

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.pruning.reconstruction import Reconstruction, narrowed_layers
from tinsmith.compiler.workshop import workshop
from tinsmith.passes.graph.tensors import constant
from tinsmith.passes.prune import find_groups
from tinsmith.passes.prune.recovery.positions import positions_left
from tinsmith.passes.prune.shrink import shrink
from tinsmith.targets.registry import get_target

SHAPE = (1, 6, 9, 9)


class Noise(CalibrationSource):
    """Random samples, the same each time."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__("noise", {"x": (SHAPE, "float32")})
        self._number, self._seed = count, seed

    @property
    def count(self) -> int:
        return self._number

    def _samples(self) -> Iterator[Mapping[str, np.ndarray]]:
        generator = np.random.default_rng(self._seed)
        for _ in range(self._number):
            yield {"x": generator.standard_normal(SHAPE).astype(np.float32)}


def two_layers():
    """x -> conv, bias, relu (8 channels) -> conv, bias (most results below 0), relu."""
    generator = np.random.default_rng(0)

    def values(*shape: int) -> relax.Constant:
        return constant(generator.standard_normal(shape).astype(np.float32) / 2)

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.nn.conv2d(x, values(8, 6, 1, 1)), "a")
            a = builder.emit(relax.op.nn.relu(relax.op.add(a, values(1, 8, 1, 1))), "a_active")
            b = builder.emit(relax.op.nn.conv2d(a, values(10, 8, 3, 3)), "b")
            shift = constant(np.full((1, 10, 1, 1), -2.0, np.float32))
            b = builder.emit(relax.op.add(b, shift), "b_sum")
            y = builder.emit_output(builder.emit(relax.op.nn.relu(b), "y"))
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_what_a_rectifier_leaves_is_what_is_solved_for(alone: bool) -> None:
    whole = two_layers()
    here = workshop(CompileConfig(threads=1), get_target("native"))
    groups = find_groups(whole)
    group = next(group for group in groups.prunable if group.units == 8)
    keep = {group.index: np.arange(5)}
    pruned, positions = shrink(whole, keep), positions_left(whole, groups, keep)
    learn, others = Noise(32, 0), Noise(24, 1)
    reconstruction = Reconstruction(whole, learn, here, alone=alone)
    recovered, errors = reconstruction.recovered(pruned, positions)
    (error,) = errors
    assert error.name == "b" and error.ridge is not None and error.after < error.before

    results = []
    for module in (whole, recovered):
        with compile_graph(module, here) as graph:
            results.append(np.stack([graph.run([s["x"]]).outputs[0].copy() for s in others]))
    wanted, found = results
    spread = np.square(wanted - wanted.mean((0, 1, 3, 4), keepdims=True)).sum()
    # The error that is told is that behind the rectifier, on samples that it was not solved for.
    assert np.square(found - wanted).sum() / spread == pytest.approx(error.after, rel=0.3)


def twins():
    """x -> conv, relu -> depthwise (channels 4 to 7 as 0 to 3) -> conv -> relu -> conv."""
    generator = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32) / 2

    def conv(data: relax.Expr, weights: np.ndarray, name: str, groups: int = 1) -> relax.Var:
        shift = constant(np.full((1, len(weights), 1, 1), 0.1, np.float32))
        product = relax.op.nn.conv2d(data, constant(weights), groups=groups)
        return builder.emit(relax.op.add(builder.emit(product, name), shift), f"{name}_sum")

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            twice = np.tile(values(4, 6, 1, 1), (2, 1, 1, 1))
            a = builder.emit(relax.op.nn.relu(conv(x, twice, "a")), "a_active")
            d = conv(a, np.tile(values(4, 1, 3, 3), (2, 1, 1, 1)), "d", groups=8)
            b = builder.emit(relax.op.nn.relu(conv(d, values(5, 8, 1, 1), "b")), "b_active")
            y = builder.emit_output(conv(b, values(3, 5, 1, 1), "c"))
        builder.emit_func_output(y)
    return builder.get()


def test_alone_only_the_layers_are_solved_that_lost_inputs() -> None:
    whole = twins()
    here = workshop(CompileConfig(threads=1), get_target("native"))
    groups = find_groups(whole)
    group = next(group for group in groups.prunable if group.units == 8)
    keep = {group.index: np.arange(4)}
    pruned, positions = shrink(whole, keep), positions_left(whole, groups, keep)
    assert [layer.name for layer in narrowed_layers(whole, pruned)] == ["b"]
    reconstruction = Reconstruction(whole, Noise(16, 0), here, alone=True)
    recovered, errors = reconstruction.recovered(pruned, positions)
    (error,) = errors
    assert error.name == "b" and error.columns == 4 and error.rows == 16 * 49
    # What went is there twice: nothing is lost.
    assert error.before > 0.1 and error.after < 1e-5
    (again,) = reconstruction.recovered(recovered, positions)[1]
    assert again.before < 1e-5
