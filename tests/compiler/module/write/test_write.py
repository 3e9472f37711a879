"""Writing a module folder: complete or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, lowered, network_model, random_inputs
from tvm.relax import op

from tinsmith.compiler.errors import BuildError, ConfigError
from tinsmith.compiler.module.loader import load, verify_files
from tinsmith.compiler.module.manifest import (
    LatencyEntry,
    Measured,
    read_manifest,
    update_measured,
)
from tinsmith.compiler.module.write import writer
from tinsmith.compiler.module.write.writer import write_module

ROOT_MAY_WRITE_ANYWHERE = os.geteuid() == 0


def _double(name: str = "double"):
    return lowered(lambda x: op.add(x, x), (((4,), "float32"),), name=name)


def test_all_files_are_there_and_listed(network_folder: Path) -> None:
    names = {path.name for path in network_folder.iterdir()}
    assert names == {
        "model.so", "model.a", "model.h", "tinsmith.h", "tinsmith-run", "weights.bin",
        "golden.bin", "manifest.json", "example.c", "tinsmith-small.pc", "tinsmith-config.cmake",
        "tinsmith-config-version.cmake",
    }  # fmt: skip
    manifest = verify_files(network_folder)
    assert set(manifest.files) == names - {"manifest.json"}
    assert manifest.weights_bytes == manifest.files["weights.bin"].bytes
    assert [step for step in manifest.steps if step == "softmax"] == ["softmax"]
    assert sum(kernel.calls for kernel in manifest.kernels) == len(manifest.steps)
    assert os.access(network_folder / "tinsmith-run", os.X_OK)


def test_the_library_is_small(network_folder: Path) -> None:
    manifest = read_manifest(network_folder)
    size = sum(manifest.files[name].bytes for name in ("model.so", "weights.bin"))
    assert size <= manifest.weights_bytes + 512 * 1024


def test_two_writes_are_identical(tmp_path: Path) -> None:
    first = write_module(network_model(), tmp_path / "a", embed_weights=False).manifest
    second = write_module(network_model(), tmp_path / "b", embed_weights=False).manifest
    assert first == second


def test_nothing_is_left_beside_the_module(tmp_path: Path) -> None:
    write_module(_double(), tmp_path / "m", forms=("shared",))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_module_is_replaced_and_the_new_one_is_loaded(tmp_path: Path) -> None:
    x = np.ones(4, "float32")
    write_module(_double(), tmp_path / "m", forms=("shared",))
    old = load(tmp_path / "m")
    tripled = lowered(lambda x: op.multiply(x, x), (((4,), "float32"),), name="double")
    write_module(tripled, tmp_path / "m", forms=("shared",))
    with load(tmp_path / "m") as new:
        np.testing.assert_array_equal(new.run([x * 3])[0], x * 9)
        np.testing.assert_array_equal(old.run([x * 3])[0], x * 6)
    old.close()


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(BuildError, match="not a compiled module"):
        write_module(_double(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(BuildError, match="is a file"):
        write_module(_double(), tmp_path / "out")


@pytest.mark.skipif(ROOT_MAY_WRITE_ANYWHERE, reason="root is not stopped by permissions")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BuildError, match="Permission denied"):
        write_module(_double(), tmp_path / "out")
    tmp_path.chmod(0o700)


def test_a_place_that_cannot_exist() -> None:
    with pytest.raises(BuildError, match="/proc/out: cannot write the module there"):
        write_module(_double(), Path("/proc/out"))


def test_a_full_disk_leaves_the_old_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(_double(), tmp_path / "m", forms=("shared",))
    before = (tmp_path / "m" / "manifest.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "_write_weights", full)
    with pytest.raises(BuildError, match="the disk is full"):
        write_module(_double("other"), tmp_path / "m", forms=("shared",))
    assert (tmp_path / "m" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failing_linker_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "generate_driver", lambda *_, **__: "#error out of tin\n")
    with pytest.raises(BuildError, match=r"out of tin.*the command was: .*ziglang cc"):
        write_module(_double(), tmp_path / "m", forms=("shared",))
    assert not list(tmp_path.iterdir())


def test_unknown_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'dll'"):
        write_module(_double(), tmp_path / "m", forms=("dll",))


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    model = lowered(lambda x: op.add(x, x), (((4,), "float32"),), name='7 "nets"/ü??/ */')
    manifest = write_module(model, tmp_path / "m").manifest
    assert manifest.entry.isidentifier()
    with load(tmp_path / "m") as module:
        assert module(np.ones(4, "float32"))["y0"][0] == 2


def test_measurements_are_added_later(tmp_path: Path) -> None:
    write_module(_double(), tmp_path / "m", forms=("shared",))
    update_measured(tmp_path / "m", latency={"median_ms": 1.5})
    update_measured(tmp_path / "m", accuracy={"top1": 0.9})
    measured = read_manifest(tmp_path / "m").measured
    assert measured == Measured(LatencyEntry(1.5), {"top1": 0.9})
    written = json.loads((tmp_path / "m" / "manifest.json").read_text())["measured"]
    assert set(written) == {"latency", "accuracy"}
    with load(tmp_path / "m") as module:
        assert module.run(random_inputs((((4,), "float32"),)))


def test_without_static_library_and_runner(tmp_path: Path) -> None:
    write_module(network_model(), tmp_path / "m", forms=("shared",))
    assert not (tmp_path / "m" / "model.a").exists()
    assert not (tmp_path / "m" / "tinsmith-run").exists()
    assert load(tmp_path / "m").run(random_inputs(NETWORK_INPUT))
