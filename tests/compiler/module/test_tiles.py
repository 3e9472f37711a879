"""A module built for AMX on a machine without it: refused in one line by whoever runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from small_networks import NETWORK_INPUT, network_model, random_inputs, reference

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module import machine
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.targets.x86 import family
from tinsmith.targets.x86.specs import SAPPHIRE_RAPIDS
from tinsmith.targets.x86.tile_permission import request_tiles


@pytest.fixture(scope="module")
def amx_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network for Sapphire Rapids."""
    inputs = random_inputs(NETWORK_INPUT)
    golden = GoldenVectors(tuple(inputs), tuple(reference(network_model(), inputs)), 1e-5)
    folder = tmp_path_factory.mktemp("amx") / "small"
    return write_module(network_model(spec=SAPPHIRE_RAPIDS), folder, golden=golden).path


def test_the_runner_says_what_is_missing(amx_module: Path) -> None:
    if request_tiles():
        pytest.skip("this machine has AMX tiles")
    done = subprocess.run(
        [amx_module / "tinsmith-run", "verify"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs AMX tiles" in done.stderr
    assert "another --target" in done.stderr


def test_the_loader_says_what_is_missing(amx_module: Path) -> None:
    if request_tiles():
        pytest.skip("this machine has AMX tiles")
    with pytest.raises(ArtifactError, match=r"compiled for sapphirerapids, this CPU lacks .*amx"):
        load(amx_module)


def test_the_loader_says_that_the_system_refuses(
    amx_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_features", lambda: SAPPHIRE_RAPIDS.cpu_features)
    monkeypatch.setattr(family, "request_tiles", lambda: False)
    with pytest.raises(ArtifactError, match="does not permit AMX tiles"):
        load(amx_module)


def test_a_machine_with_tiles_runs_the_module(amx_module: Path) -> None:
    missing = SAPPHIRE_RAPIDS.cpu_features - machine.cpu_features()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    module = load(amx_module)
    inputs = random_inputs(NETWORK_INPUT)
    assert len(module.run(inputs)) == len(reference(network_model(), inputs))
    module.close()
