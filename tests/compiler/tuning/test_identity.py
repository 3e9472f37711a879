"""A job has the same name again if the model, the options and the data are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.quantization.config import QuantizationConfig
from tinsmith.compiler.tuning.identity import job_digest


def quantized(calibration: object) -> CompileConfig:
    return CompileConfig(quantization=QuantizationConfig(calibration=calibration))


def test_what_is_built_counts_and_where_it_goes_does_not(small_model_file: Path) -> None:
    first = job_digest(small_model_file, CompileConfig(), 0)
    assert first == job_digest(str(small_model_file), CompileConfig(runner=False, log=Path("x")), 0)
    assert first != job_digest(small_model_file, CompileConfig(threads=1), 0)
    assert first != job_digest(small_model_file, CompileConfig(), 1)
    assert first != job_digest(small_model_file, quantized("random"), 0)


def test_a_weight_counts_wherever_it_is_stored(small_model_file: Path, tmp_path: Path) -> None:
    model = onnx.load(small_model_file)
    assert job_digest(model, CompileConfig(), 0) == job_digest(model, CompileConfig(), 0)
    outside = tmp_path / "outside.onnx"
    onnx.save(
        model,
        outside,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    before = job_digest(outside, CompileConfig(), 0)
    weights = tmp_path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert job_digest(outside, CompileConfig(), 0) != before


def test_other_calibration_data_is_another_job(small_model_file: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=np.zeros((2, 3, 8, 8), np.float32))
    before = job_digest(small_model_file, quantized(samples), 0)
    assert before is not None
    np.savez(samples, image=np.zeros((3, 3, 8, 8), np.float32))
    assert job_digest(small_model_file, quantized(samples), 0) != before


@pytest.mark.parametrize("count", [1, 3])
def test_data_in_memory_have_no_name(small_model_file: Path, count: int) -> None:
    samples = {"image": np.zeros((count, 3, 8, 8), np.float32)}
    assert job_digest(small_model_file, quantized(samples), 0) is None
