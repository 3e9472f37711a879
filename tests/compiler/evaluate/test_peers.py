"""Rival runtimes in the precision they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.evaluate.peers import OpenVino, installed


@pytest.mark.skipif(not installed(OpenVino), reason="OpenVINO is not installed")
def test_openvino_computes_in_bfloat16_on_request(small_model_file: Path) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype("float32")
    shapes = {"image": image.shape}
    exact = OpenVino(small_model_file, 1, shapes).run({"image": image})["scores"]
    short = OpenVino(small_model_file, 1, shapes, "bfloat16").run({"image": image})["scores"]
    np.testing.assert_allclose(short, exact, atol=0.03 * np.ptp(exact))
