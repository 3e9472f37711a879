"""Modules for ARM, run under qemu-user-static where it is installed.

Slow: the linker builds a C library for each target on its first use.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from small_networks import NETWORK_INPUT, network_model, random_inputs, reference

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.targets.registry import get_target

EMULATORS = {
    "cortex-a53": "qemu-aarch64-static",
    "cortex-a72": "qemu-aarch64-static",
    "cortex-a76": "qemu-aarch64-static",
    "cortex-a7": "qemu-arm-static",
}


@pytest.mark.slow
@pytest.mark.parametrize("target", EMULATORS)
def test_an_arm_module_proves_itself(target: str, tmp_path: Path) -> None:
    emulator = shutil.which(EMULATORS[target])
    if emulator is None:
        pytest.skip(f"{EMULATORS[target]} is not installed")
    inputs = random_inputs(NETWORK_INPUT)
    golden = GoldenVectors(tuple(inputs), tuple(reference(network_model(), inputs)), 1e-5)
    written = write_module(
        network_model(spec=get_target(target)), tmp_path / "m", golden=golden, embed_weights=False
    )
    assert written.manifest.form == "self-contained"
    for file in ("model.so", "tinsmith-run"):
        content = (tmp_path / "m" / file).read_bytes()
        assert b"small_k_softmax_0\0" in content and len(content) < 400_000  # no debug sections
    for threads in ("1", "3"):
        done = subprocess.run(
            [emulator, tmp_path / "m" / "tinsmith-run", "--threads", threads, "verify"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": ok") == 2
    with pytest.raises(ArtifactError, match=f"compiled for .*{target}"):
        load(tmp_path / "m")
