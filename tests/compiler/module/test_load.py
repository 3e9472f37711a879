"""What the loader refuses before any code runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import ArtifactError
from compiler.module import machine
from compiler.module.loader import load, verify_files


@pytest.fixture
def copy(network_folder: Path, tmp_path: Path) -> Path:
    """A copy of the module that a test may damage."""
    return Path(shutil.copytree(network_folder, tmp_path / "copy"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: does not match its digest"):
        load(copy)


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_a_truncated_file_is_found(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="does not match its digest"):
        load(copy)


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_a_missing_file_is_found(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: No such file"):
        load(copy)


def test_files_that_are_not_loaded_are_checked_by_verify_files(copy: Path) -> None:
    (copy / "model.h").write_text("/* nothing */")
    load(copy).close()
    with pytest.raises(ArtifactError, match=r"model\.h: does not match"):
        verify_files(copy)


def test_not_a_module(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a compiled module"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="not a compiled module"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "1"}', "\x00\xff"])
def test_a_damaged_manifest(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: (damaged|has no format version)"):
        load(copy)


@pytest.mark.parametrize("key", ["files", "inputs", "entry", "target"])
def test_an_incomplete_manifest(copy: Path, key: str) -> None:
    _edit(copy, lambda data: data.pop(key))
    with pytest.raises(ArtifactError, match="damaged"):
        load(copy)


def test_an_unknown_field(copy: Path) -> None:
    _edit(copy, lambda data: data.update(colour="red"))
    with pytest.raises(ArtifactError, match=r"damaged.*colour"):
        load(copy)


def test_a_newer_format(copy: Path) -> None:
    _edit(copy, lambda data: data.update(format=999))
    with pytest.raises(ArtifactError, match="format 999, this Tinsmith reads format 1"):
        load(copy)


def test_an_unknown_form(copy: Path) -> None:
    _edit(copy, lambda data: data.update(form="bytecode"))
    with pytest.raises(ArtifactError, match="unknown form 'bytecode'"):
        load(copy)


@pytest.mark.parametrize("name", ["../model.so", "/etc/passwd", ".."])
def test_files_outside_the_folder(copy: Path, name: str) -> None:
    entry = {"bytes": 1, "blake3": "00"}
    _edit(copy, lambda data: data["files"].update({name: entry}))
    with pytest.raises(ArtifactError, match="damaged"):
        load(copy)


def test_a_library_that_is_not_listed(copy: Path) -> None:
    _edit(copy, lambda data: data["files"].pop("model.so"))
    with pytest.raises(ArtifactError, match="not listed"):
        load(copy)


def test_the_entry_point_in_the_manifest_is_never_called(copy: Path) -> None:
    _edit(copy, lambda data: data.update(entry="abort"))
    load(copy).close()


def test_a_signature_that_the_library_does_not_have(copy: Path) -> None:
    _edit(copy, lambda data: data["inputs"][0].update(shape=[1, 3, 16, 17]))
    with pytest.raises(ArtifactError, match="does not describe the library"):
        load(copy)


def test_missing_cpu_features(copy: Path) -> None:
    _edit(copy, lambda data: data["target"]["cpu_features"].append("amx_fp64"))
    with pytest.raises(ArtifactError, match="this CPU lacks amx_fp64"):
        load(copy)


def test_another_architecture(network_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    with pytest.raises(ArtifactError, match=r"compiled for x86_64.*this machine is riscv64"):
        load(network_folder)


def test_a_library_that_is_no_library(copy: Path) -> None:
    from compiler.module.manifest import digest_file

    (copy / "model.so").write_bytes(b"not ELF")
    digest = digest_file(copy / "model.so")
    entry = {"bytes": digest.bytes, "blake3": digest.blake3}
    _edit(copy, lambda data: data["files"].update({"model.so": entry}))
    with pytest.raises(ArtifactError, match=r"model\.so cannot be loaded"):
        load(copy)


def test_loading_and_running_needs_no_tvm(network_folder: Path) -> None:
    code = (
        "import sys, numpy, compiler\n"
        f"module = compiler.load({str(network_folder)!r})\n"
        "module(numpy.zeros((1, 3, 16, 16), 'float32'))\n"
        "print([m for m in ('tvm', 'tvm_ffi', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_is_quick(network_folder: Path) -> None:
    load(network_folder).close()
    begin = time.perf_counter()
    load(network_folder).close()
    assert time.perf_counter() - begin < 0.05
