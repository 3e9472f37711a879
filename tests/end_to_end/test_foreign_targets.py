"""Modules for other machines, run by an emulator where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tinsmith.compiler.api import compile_to
from tinsmith.compiler.errors import ArtifactError, TinsmithError
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.quantization.config import QuantizationConfig

EMULATORS = {"cortex-a72": "qemu-aarch64-static", "cortex-a7": "qemu-arm-static"}


@pytest.mark.parametrize("target", EMULATORS)
def test_arm_module_proves_itself(target: str, small_model_file: Path, tmp_path: Path) -> None:
    report = compile_to(small_model_file, tmp_path / "m", target=target, static_library=False)
    assert report.manifest.form == "self-contained"
    assert any("not run here" in remark for remark in report.notes)
    with pytest.raises(ArtifactError, match=target):
        load(report.path)
    emulator = shutil.which(EMULATORS[target])
    if emulator is None:
        pytest.skip(f"{EMULATORS[target]} is not installed")
    done = subprocess.run(
        [emulator, str(report.path / "tinsmith-run"), "verify"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_arm_module_in_integers_proves_itself(small_model_file: Path, tmp_path: Path) -> None:
    """The calibration runs here, the module's dot products where they exist."""
    report = compile_to(
        small_model_file,
        tmp_path / "m",
        target="cortex-a76",
        static_library=False,
        quantization=QuantizationConfig(calibration="random", samples=4),
    )
    assert report.quantization is not None
    assert {layer.computes for layer in report.quantization.layers} == {"integer"}
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed")
    done = subprocess.run(
        [emulator, "-cpu", "max", str(report.path / "tinsmith-run"), "verify"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compile_names_the_way_out_for_a_foreign_target(small_model_file: Path) -> None:
    import tinsmith

    with pytest.raises(TinsmithError, match="cortex-a72"):
        tinsmith.compile(small_model_file, "cortex-a72", runner=False, static_library=False)
