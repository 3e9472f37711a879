"""The machine at hand, known or not: models are compiled on it for others."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tinsmith
from tinsmith.compiler.api import compile_to
from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.machine import check_machine
from tinsmith.compiler.module.manifest import MachineEntry
from tinsmith.targets.registry import get_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions and a classifier."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w3"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [weights("w1", 32, 3, 3, 3), weights("w2", 32, 32, 3, 3), weights("w3", 32, 10)],
    )
    path = tmp_path_factory.mktemp("host") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says of itself what its processor does not bear out."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


def test_kernels_of_another_machine_are_told_apart() -> None:
    host = Host.at_hand()
    assert host.makes(get_target("native"))
    assert not host.makes(get_target("cortex-a72"))


@pytest.mark.usefixtures("foreign")
def test_what_cannot_be_described_runs_what_all_do() -> None:
    host = Host.at_hand()
    assert host.spec.name == "portable"
    assert not host.spec.cpu_features
    machine = MachineEntry("portable", host.spec.architecture, "", "", ())
    check_machine("graph", machine)


@pytest.mark.slow
@pytest.mark.usefixtures("foreign")
def test_a_machine_that_is_not_known_compiles_quantises_and_prunes_for_others(
    model: Path, tmp_path: Path
) -> None:
    """Up to running the result."""
    report = compile_to(
        model,
        tmp_path / "m",
        target="rpi5",
        config=tinsmith.CompileConfig.from_dict(
            {
                "static_library": False,
                "runner": False,
                "quantization": {"calibration": "random", "samples": 2},
                "pruning": {"ratio": 0.3, "calibration": "random", "samples": 2},
            }
        ),
    )
    assert report.manifest.target.name == "cortex-a76"
    assert report.quantization is not None
    assert report.pruning is not None
    assert any(note.startswith("not run here") for note in report.notes)


@pytest.mark.usefixtures("foreign")
def test_nothing_is_compiled_for_a_machine_that_is_not_known(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="target 'native': this CPU lacks asimd"):
        compile_to(model, tmp_path / "m")
