"""Ranges of inner tensors of a compiled graph, against the same graph run in numpy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import tvm
from tvm import relax

from tinsmith.compiler.calibration import (
    CalibrationSource,
    ObservedModule,
    calibrate,
    observe_tensors,
    open_calibration,
)
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import InputError, ModelError
from tinsmith.compiler.workshop import Workshop, workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.quantize.observers import (
    ChannelMinMaxObserver,
    MinMaxObserver,
    observer_factory,
)
from tinsmith.targets.registry import get_target

SIGNATURE = {"x": ((1, 16, 16, 8), "float32")}
WEIGHT = np.random.default_rng(0).standard_normal((1, 1, 8, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def here() -> Workshop:
    return workshop(CompileConfig(), get_target("native"))


@pytest.fixture(scope="module")
def graph() -> tvm.IRModule:
    """conv = x * w (1x1); act = relu(conv); mean over the pixels; two results."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 16, 16, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            conv = builder.emit(
                relax.op.nn.conv2d(
                    x, relax.const(WEIGHT), data_layout="NHWC", kernel_layout="HWIO"
                ),
                "conv",
            )
            act = builder.emit(relax.op.nn.relu(conv), "act")
            mean = builder.emit_output(relax.op.mean(act, axis=[1, 2]), "mean")
        builder.emit_func_output(mean)
    return builder.get()


def data(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 16, 16, 8)).astype(np.float32)


def source(count: int) -> CalibrationSource:
    return open_calibration(data(count), SIGNATURE)


def test_ranges_are_those_of_the_float_graph(graph: tvm.IRModule, here: Workshop) -> None:
    names = ("x", "conv", "act", "mean")
    ranges = calibrate(graph, here, names, source(9), MinMaxObserver)
    x = data(9)
    conv = x @ WEIGHT[0, 0]
    act = np.maximum(conv, 0)
    expected = {"x": x, "conv": conv, "act": act, "mean": act.mean((1, 2))}
    assert tuple(ranges) == names
    for name, values in expected.items():
        assert np.allclose(ranges[name], (values.min(), values.max()), rtol=1e-5, atol=1e-6), name


def test_one_run_gives_results_and_tensors(graph: tvm.IRModule, here: Workshop) -> None:
    x = data(2)
    with ObservedModule(graph, here, ("act", "x", "act")) as observed:
        for row in x:
            seen = observed.run([row[None]])
            act = np.maximum(row[None] @ WEIGHT[0, 0], 0)
            assert list(seen.tensors) == ["act", "x"]
            assert np.allclose(seen.tensors["act"], act, rtol=1e-5, atol=1e-5)
            assert np.array_equal(seen.tensors["x"], row[None])
            assert len(seen.outputs) == 1
            assert np.allclose(seen.outputs[0], act.mean((1, 2)), rtol=1e-5, atol=1e-5)


def test_any_observer_can_watch(graph: tvm.IRModule, here: Workshop) -> None:
    found = observe_tensors(graph, here, ["x"], source(5), ChannelMinMaxObserver)["x"]
    assert isinstance(found, ChannelMinMaxObserver)
    assert np.array_equal(found.ranges()[1], data(5).max((0, 1, 2)))


def test_progress_tells_samples(graph: tvm.IRModule, here: Workshop) -> None:
    seen: list[tuple[str, float]] = []
    progress: Progress = lambda step, share: seen.append((step, share))  # noqa: E731
    calibrate(graph, here, ["x"], source(4), MinMaxObserver, progress=progress)
    assert seen[0] == ("compile for calibration", 0.0)
    assert seen[1:] == [(f"calibrate {i + 1}/4", i / 4) for i in range(4)]


def test_unknown_tensors_and_infinite_values(graph: tvm.IRModule, here: Workshop) -> None:
    with pytest.raises(ModelError, match="no tensor nothing"):
        calibrate(graph, here, ["nothing"], source(1), MinMaxObserver)
    large = open_calibration(np.full((1, 16, 16, 8), 3e38, np.float32), SIGNATURE)
    with pytest.raises(InputError, match="sample 0: tensor act: values are NaN or infinite"):
        calibrate(graph, here, ["act"], large, MinMaxObserver)


@pytest.mark.parametrize("name", ["minmax", "mse"])
def test_memory_does_not_grow_with_the_samples(
    graph: tvm.IRModule, here: Workshop, name: str
) -> None:
    generator = np.random.default_rng(2)

    def samples(count: int) -> Iterator[np.ndarray]:
        return (generator.standard_normal((1, 16, 16, 8), np.float32) for _ in range(count))

    def peak(count: int) -> int:
        stream = open_calibration(lambda: samples(count), SIGNATURE)
        tracemalloc.start()
        try:
            calibrate(graph, here, ["x", "conv", "act"], stream, observer_factory(name))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(16), peak(512)
    # The three tensors of 496 further samples are 20 MB; a histogram fills up within its bins.
    assert many < few + 2_000_000
