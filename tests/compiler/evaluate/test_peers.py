"""Rival runtimes in the precision they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.evaluate.bench import bench
from compiler.evaluate.peers import OpenVino, installed


@pytest.mark.skipif(not installed(OpenVino), reason="OpenVINO is not installed")
def test_openvino_computes_in_bfloat16_on_request(small_model_file: Path) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype("float32")
    shapes = {"image": image.shape}
    exact = OpenVino(small_model_file, 1, shapes).run({"image": image})["scores"]
    short = OpenVino(small_model_file, 1, shapes, "bfloat16").run({"image": image})["scores"]
    np.testing.assert_allclose(short, exact, atol=0.03 * np.ptp(exact))


def test_a_peer_without_the_precision_is_named(small_module: Path, small_model_file: Path) -> None:
    report = bench(small_module, small_model_file, runs=1, threads=1, precision="bfloat16")
    assert "ONNX Runtime" not in [timing.label for timing in report.timings]
    assert "ONNX Runtime" in report.missing
