"""A small convolutional model that several tests compile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


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
