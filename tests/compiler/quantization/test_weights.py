"""Compiling the demo network with compressed weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.evaluate.accuracy import LabelledImages

SHAPE = {"image": (1, 1, 28, 28)}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Test images as the network takes them, float32 `[300, 1, 28, 28]`."""
    return LabelledImages.read(IMAGES).images[:300, None].astype("float32") / np.float32(255)


def compiled(model: Path, folder: Path, **options) -> tinsmith.CompileReport:
    return tinsmith.compile_to(
        model,
        folder / "module",
        shapes=SHAPE,
        quantization=tinsmith.QuantizationConfig(**options),
        runner=False,
        static_library=False,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tinsmith.CompileReport:
    """Weights of 4 bits in groups of 32, without data."""
    folder = tmp_path_factory.mktemp("weights")
    return compiled(MODEL, folder, format="int4-weights", group_size=32, min_weights=500)


def test_the_report_says_what_was_compressed(small) -> None:
    report = small.quantization
    layers = [layer for layer in report.layers if layer.weight_bits]
    assert len(layers) == report.compressed_layers > 5
    for layer in layers:
        assert (layer.computes, layer.weight_bits) == ("float", 4)
        assert layer.group <= 32 and layer.weight_sqnr_db > 17
        assert 0.125 < layer.weight_bytes / layer.float_weight_bytes < 0.2
    reasons = {layer.reason for layer in report.layers if not layer.weight_bits}
    assert "fewer than 500 weights" in reasons
    assert report.output_sqnr_db > 12
    assert "with compressed weights" in report.summary()
    assert report.bytes < report.float_bytes
    again = type(report).from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.compressed_layers == report.compressed_layers


def test_accuracy_is_kept(small, images: np.ndarray) -> None:
    labels = LabelledImages.read(IMAGES).labels[:300]
    with tinsmith.load(small.path) as module:
        scores = np.concatenate([module.run([image[None]])[0] for image in images])
    assert (scores.argmax(1) == labels).mean() > 0.92


def test_data_bring_products_nearer(
    residual_model_file: Path, tmp_path: Path, images: np.ndarray
) -> None:
    options = {"format": "int4-weights", "group_size": 32, "min_weights": 500}
    plain = compiled(residual_model_file, tmp_path / "plain", **options).quantization
    options["calibration"] = images[:32]
    calibrated = compiled(residual_model_file, tmp_path / "near", **options).quantization
    # Weights are farther from the float ones, what is computed with them is nearer.
    assert calibrated.output_sqnr_db > plain.output_sqnr_db
    for layer, before in zip(calibrated.layers, plain.layers, strict=True):
        assert layer.weight_bytes == before.weight_bytes
        if layer.weight_bits:
            assert layer.weight_sqnr_db < before.weight_sqnr_db


def test_from_the_command_line(
    residual_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long times, as a loaded machine has them, make columns wide and break the headings.
    monkeypatch.setenv("COLUMNS", "200")
    out, report = tmp_path / "module", tmp_path / "report.json"
    arguments = ["compile", str(residual_model_file), "-o", str(out), "--shape", "image=1,1,28,28"]
    arguments += ["--quantize", "kmeans4-weights", "--group-size", "128", "--report", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "kmeans4-weights: " in result.output and "weights dB" in result.output
    written = json.loads(report.read_text())
    assert written["options"]["group_size"] == 128 and written["source"] == "random inputs"
    inspected = CliRunner().invoke(app, ["inspect", str(out), "--runs", "1"])
    assert inspected.exit_code == 0, inspected.output
    assert "with compressed weights" in inspected.output


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--group-size 48: choose from 16, 32, 64, 128, 256"):
        tinsmith.QuantizationConfig(format="int4-weights", group_size=48)
    with pytest.raises(ModelError, match="no convolution or matrix product with 1000000000"):
        compiled(MODEL, tmp_path, format="int8-weights", min_weights=10**9)
