"""How tests are shared out among processes, and small models that several of them compile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the files anew that results are compared with",
    )


# These measure time, or kill processes that hold processors and ports: never two of them at once.
_ALONE = (
    "tests/compiler/tuning/",
    "tests/compiler/evaluate/test_bench.py",
    "tests/compiler/evaluate/test_roofline.py",
    "tests/compiler/module/test_forks.py",
    "tests/compiler/module/test_killed.py",
    "tests/compiler/module/test_surroundings.py",
    "tests/compiler/pruning/test_prune_goals.py",
    "tests/compiler/quantization/test_speed.py",
    "tests/compiler/test_processes.py",
)


def _is_alone(node: str) -> bool:
    return node.startswith(_ALONE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs alone comes first: it takes longest, and other files fill the time beside it."""
    items.sort(key=lambda item: not _is_alone(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """For `--dist loadfile`, as `make test` has it: what runs alone is one group.

    The other files stay whole, since their tests share what they compile.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "alone" if _is_alone(nodeid) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands print is as wide as `COLUMNS` says; tests mean what goes into a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)


def small_model() -> onnx.ModelProto:
    """image (1, 3, 8, 8) -> Conv -> Relu -> Conv -> Relu -> mean -> Gemm -> scores (1, 5)."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["first"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["first_relu"]),
        helper.make_node("Conv", ["first_relu", "w2", "b2"], ["second"], strides=[2, 2]),
        helper.make_node("Relu", ["second"], ["second_relu"]),
        helper.make_node("GlobalAveragePool", ["second_relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w3"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5])],
        [
            weight("w1", 16, 3, 3, 3),
            weight("b1", 16),
            weight("w2", 16, 16, 3, 3),
            weight("b2", 16),
            weight("w3", 16, 5),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def residual_model() -> onnx.ModelProto:
    """image (batch, 1, 28, 28) -> a stem, a residual block, two convolutions -> scores (batch, 10).

    It has what the demo's network has (batch normalisation, an addition of branches, four
    groups of channels that can be pruned, biases, a matrix product) in a fifth of its layers;
    its weights are random, its bias spreads the demo's images over the classes.
    """
    from tinsmith.compiler.demo import IMAGES
    from tinsmith.compiler.evaluate.accuracy import LabelledImages

    generator = np.random.default_rng(1)
    weights: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(name: str, values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def convolution(name: str, x: str, size: tuple[int, int], stride: int) -> str:
        out, into = size
        kernel = generator.normal(0, (2 / (into * 9)) ** 0.5, (out, into, 3, 3))
        x = add("Conv", [x, weight(f"{name}_w", kernel)], name, pads=[1] * 4, strides=[stride] * 2)
        scale = [weight(f"{name}_scale", generator.uniform(0.8, 1.2, out))]
        scale += [weight(f"{name}_{p}", generator.normal(0, 0.2, out)) for p in ("shift", "mean")]
        scale += [weight(f"{name}_variance", generator.uniform(0.5, 1.5, out))]
        return add("BatchNormalization", [x, *scale], f"{name}_norm")

    stem = add("Relu", [convolution("stem", "image", (32, 1), 2)], "stem_relu")
    first = add("Relu", [convolution("block_1", stem, (32, 32), 2)], "block_1_relu")
    second = convolution("block_2", first, (32, 32), 1)
    short = add("MaxPool", [stem], "short", kernel_shape=[2, 2], strides=[2, 2])
    x = add("Relu", [add("Add", [second, short], "sum")], "sum_relu")
    x = add("Relu", [convolution("down", x, (48, 32), 2)], "down_relu")
    x = add("Relu", [convolution("last", x, (64, 48), 1)], "last_relu")
    x = add("Flatten", [add("GlobalAveragePool", [x], "pooled")], "features")
    matrix = weight("matrix", generator.normal(0, 0.3, (64, 10)))
    add("Gemm", [x, matrix, weight("bias", np.zeros(10))], "scores")
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    images = LabelledImages.read(IMAGES).images[:24, None].astype("float32") / np.float32(255)
    (scores,) = onnx.reference.ReferenceEvaluator(model).run(None, {"image": images})
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(-scores.mean(axis=0), "bias"))
    return model


@pytest.fixture(scope="session")
def residual_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`residual_model` in a file."""
    path = tmp_path_factory.mktemp("model") / "residual.onnx"
    onnx.save(residual_model(), path)
    return path


@pytest.fixture(scope="session", autouse=True)
def no_records_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user has tuned must not change what the tests compile."""
    with pytest.MonkeyPatch.context() as patch:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Building the linker's own files takes half a minute.
        patch.setenv(
            "ZIG_GLOBAL_CACHE_DIR", os.environ.get("ZIG_GLOBAL_CACHE_DIR") or f"{cache}/zig"
        )
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` in a file."""
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="session")
def small_module(small_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` compiled for this machine."""
    from tinsmith.compiler.api import compile_to

    folder = tmp_path_factory.mktemp("compiled") / "small"
    return compile_to(small_model_file, folder, runner=False, static_library=False).path
