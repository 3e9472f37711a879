"""Compiling the demo network in integers, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.quantization.report import QuantizationReport

SHAPE = {"image": (1, 1, 28, 28)}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """The demo's test images as the network takes them, float32 `[1000, 1, 28, 28]`."""
    return LabelledImages.read(IMAGES).images[:, None].astype("float32") / np.float32(255)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray):
    folder = tmp_path_factory.mktemp("quantized") / "module"
    options = tinsmith.QuantizationConfig(calibration=images[:64], fallback=False)
    return tinsmith.compile_to(
        MODEL,
        folder,
        shapes=SHAPE,
        quantization=options,
        runner=False,
        static_library=False,
    )


@pytest.fixture(scope="module")
def small(residual_model_file: Path, tmp_path_factory: pytest.TempPathFactory, images: np.ndarray):
    """As `quantized`, of the residual model: enough where no labels are asked for."""
    return tinsmith.compile_to(
        residual_model_file,
        tmp_path_factory.mktemp("small") / "module",
        shapes=SHAPE,
        quantization=tinsmith.QuantizationConfig(calibration=images[:64], fallback=False),
        runner=False,
        static_library=False,
    )


def test_all_layers_compute_in_integers(quantized) -> None:
    report = quantized.quantization
    assert report.integer_layers == len(report.layers) > 10
    assert report.output_sqnr_db > 20
    assert report.agreement > 0.9
    assert all(layer.sqnr_db > 10 for layer in report.layers)
    # All but the scores, which leave the module as floats, are stored in integers.
    assert sum(layer.low is not None for layer in report.layers) >= len(report.layers) - 1


def test_accuracy_is_kept(quantized, images: np.ndarray) -> None:
    labels = LabelledImages.read(IMAGES).labels
    module = tinsmith.load(quantized.path)
    scores = np.concatenate([module.run([image[None]])[0] for image in images])
    module.close()
    assert (scores.argmax(1) == labels).mean() >= 0.943 - 0.005


def test_the_module_is_a_quarter_of_the_weights(quantized) -> None:
    assert (quantized.path / "model.so").stat().st_size < 0.27 * 315_114 * 4 + 128 * 1024


def test_it_proves_itself_and_reports(quantized) -> None:
    assert quantized.differences[0].relative < 1e-6
    manifest = json.loads((quantized.path / "manifest.json").read_text())
    assert manifest["measured"]["quantization"]["integer_layers"] > 10
    assert manifest["config"]["quantization"]["format"] == "int8"


def test_layers_have_bits_and_times(quantized) -> None:
    report = quantized.quantization
    assert {(layer.weight_bits, layer.activation_bits) for layer in report.layers} == {(8, 8)}
    assert all(layer.float_seconds > 0 and layer.seconds > 0 for layer in report.layers)
    assert sum(layer.seconds for layer in report.layers) < report.seconds * 1.5
    assert report.bytes == quantized.size_bytes < report.float_bytes


@pytest.mark.slow
def test_for_another_machine_no_latency_is_told(tmp_path: Path, images: np.ndarray) -> None:
    options = tinsmith.QuantizationConfig(calibration=images[:2])
    report = tinsmith.compile_to(
        MODEL,
        tmp_path / "out",
        target="cortex-a72",
        shapes=SHAPE,
        quantization=options,
        runner=False,
        static_library=False,
    ).quantization
    assert report.seconds is None
    assert all(layer.seconds is None for layer in report.layers)
    few, elsewhere = report.notes
    assert few.startswith("warning: agreement and accuracy were measured on the samples that")
    assert elsewhere == "latency not measured: the module is for another machine"


def test_inspect_shows_the_report(quantized) -> None:
    result = CliRunner().invoke(app, ["inspect", str(quantized.path), "--runs", "1"])
    assert result.exit_code == 0, result.output
    assert quantized.quantization.layers[0].name in result.output
    assert quantized.quantization.summary() in result.output
    read = QuantizationReport.from_dict(quantized.quantization.to_dict())
    assert read.layers == quantized.quantization.layers


def test_a_layer_is_kept_in_float_on_request(
    residual_model_file: Path, tmp_path: Path, small, images: np.ndarray
) -> None:
    layer = small.quantization.layers[2]
    assert layer.origin == "block_2_norm"
    data = tmp_path / "images.npy"
    np.save(data, images[:4])
    arguments = ["compile", str(residual_model_file), "--shape", "image=1,1,28,28"]
    arguments += ["--json", "--no-fallback"]
    arguments += ["--quantize", "int8", "--calibration", str(data), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--keep-float", "block_2_norm"])
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["quantization"]["layers"]
    kept = [layer for layer in layers if layer["computes"] == "float"]
    assert [(layer["name"], layer["reason"]) for layer in kept] == [
        (layer.name, "kept in float on request")
    ]


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    options = tinsmith.QuantizationConfig(calibration=images[:2], keep_float=("stem_relu2",))
    with pytest.raises(ConfigError, match="no layer stem_relu2"):
        tinsmith.compile_to(MODEL, tmp_path / "out", shapes=SHAPE, quantization=options)


def test_the_command_line(residual_model_file: Path, tmp_path: Path, images: np.ndarray) -> None:
    data = tmp_path / "images.npy"
    np.save(data, images[:8])
    arguments = ["compile", str(residual_model_file), "--shape", "image=1,1,28,28"]
    arguments += ["--quantize", "int8", "--calibration", str(data), "-o", str(tmp_path / "out")]
    arguments += ["--no-fallback", "--report", str(tmp_path / "report.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 8
    assert report["integer_layers"] == len(report["layers"])


def test_data_are_required() -> None:
    with pytest.raises(ConfigError, match="pass --calibration"):
        tinsmith.QuantizationConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"format": "int3"}, "choose from int8"), ({"observer": "eye"}, "choose from minmax")],
)
def test_unknown_choices_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        tinsmith.QuantizationConfig(calibration="random", **options)


def test_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    options = tinsmith.QuantizationConfig(calibration=np.zeros((4, 1, 20, 20), "float32"))
    with pytest.raises(InputError):
        tinsmith.compile_to(MODEL, tmp_path / "out", shapes=SHAPE, quantization=options)
    assert not (tmp_path / "out").exists()


def test_least_squares_rounding_suits_the_data(
    residual_model_file: Path, small, tmp_path: Path, images: np.ndarray
) -> None:
    options = tinsmith.QuantizationConfig(
        calibration=images[:64], rounding="least-squares", fallback=False
    )
    report = tinsmith.compile_to(
        residual_model_file, tmp_path / "out", shapes=SHAPE, quantization=options, runner=False
    ).quantization
    assert report.integer_layers == small.quantization.integer_layers
    assert report.output_sqnr_db > small.quantization.output_sqnr_db - 0.5
    assert report.to_dict()["options"]["rounding"] == "least-squares"
    changed = [
        (a.sqnr_db, b.sqnr_db)
        for a, b in zip(report.layers, small.quantization.layers, strict=True)
        if a.sqnr_db != b.sqnr_db
    ]
    assert changed
