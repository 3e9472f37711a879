"""Compiling the demo network in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.targets.number_formats import float_precisions
from tinsmith.targets.registry import get_target

SHAPE = {"image": (1, 1, 28, 28)}
needs_bfloat16 = pytest.mark.skipif(
    "bfloat16" not in float_precisions(get_target("native")), reason="this CPU lacks avx512_bf16"
)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tinsmith.CompileReport:
    """The network in bfloat16, without calibration."""
    return tinsmith.compile_to(
        MODEL,
        tmp_path_factory.mktemp("short") / "module",
        shapes=SHAPE,
        quantization=tinsmith.QuantizationConfig(format="bf16"),
        runner=False,
        static_library=False,
    )


@needs_bfloat16
def test_all_layers_multiply_in_bfloat16(short) -> None:
    report = short.quantization
    assert {layer.computes for layer in report.layers} == {"bfloat16"}
    assert all(layer.sqnr_db > 30 for layer in report.layers)
    assert report.output_sqnr_db > 30
    assert "random inputs" in " ".join(short.notes)
    assert f"bf16: {len(report.layers)} of {len(report.layers)} layers in bfloat16" in (
        report.summary()
    )
    products = [k for k in short.manifest.kernels if k.template in ("convolution", "matmul")]
    assert {kernel.arithmetic for kernel in products} == {"bfloat16"}


@needs_bfloat16
def test_the_module_keeps_accuracy_and_halves_the_weights(short) -> None:
    data = LabelledImages.read(IMAGES)
    images = data.images[:300, None].astype("float32") / np.float32(255)
    with tinsmith.load(short.path) as module:
        scores = np.concatenate([module.run([image[None]])[0] for image in images])
    assert scores.dtype == np.float32
    assert (scores.argmax(1) == data.labels[:300]).mean() > 0.92
    assert short.size_bytes < 0.5 * 315_114 * 4 + 160 * 1024


@needs_bfloat16
def test_layers_kept_in_float_are_named_and_unknown_ones_refused(
    residual_model_file: Path, tmp_path: Path
) -> None:
    first = "stem_norm"

    def kept(name: str) -> tinsmith.CompileReport:
        return tinsmith.compile_to(
            residual_model_file,
            tmp_path / "m",
            shapes=SHAPE,
            quantization=tinsmith.QuantizationConfig(format="bf16", keep_float=(name,)),
            runner=False,
            static_library=False,
        )

    left = [layer for layer in kept(first).quantization.layers if layer.computes == "float"]
    assert [(layer.origin, layer.reason) for layer in left] == [(first, "kept in float on request")]
    with pytest.raises(ConfigError, match="--keep-float nothing: no layer nothing"):
        kept("nothing")


def test_without_the_instructions_tensors_stay_float32_and_the_report_says_so(
    residual_model_file: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        app,
        [
            *("compile", str(residual_model_file), "--shape", "image=1,1,28,28"),
            *("--target", "x86-64-v3", "--quantize", "bf16", "-o", str(tmp_path / "m"), "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["quantization"]
    assert {layer["computes"] for layer in report["layers"]} == {"float"}
    assert report["layers"][0]["reason"] == "x86-64-v3 has no bfloat16 products"


@pytest.mark.parametrize("target", ["x86-64-v3", "cortex-a76"])
def test_float16_is_refused_in_one_line(target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        tinsmith.compile_to(
            MODEL,
            tmp_path / "m",
            target=target,
            shapes=SHAPE,
            quantization=tinsmith.QuantizationConfig(format="fp16"),
        )
    assert str(refused.value) == (f"--quantize fp16: {target} computes in float32, not in float16")
