"""What the loader refuses before any code runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module import machine, module_file
from tinsmith.compiler.module.loader import load, verify_files
from tinsmith.compiler.module.manifest import FileDigest, digest_bytes, read_manifest


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
    with pytest.raises(ArtifactError, match=r"nowhere: no such module$"):
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
    with pytest.raises(ArtifactError, match="format 999, this Tinsmith reads formats 1 to 3"):
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
    monkeypatch.setattr(machine, "process_architecture", lambda: "riscv64")
    with pytest.raises(ArtifactError, match=r"compiled for x86_64.*this machine is riscv64"):
        load(network_folder)


def test_a_library_that_is_no_library(copy: Path) -> None:
    from tinsmith.compiler.module.manifest import digest_file

    (copy / "model.so").write_bytes(b"not ELF")
    digest = digest_file(copy / "model.so")
    entry = {"bytes": digest.bytes, "blake3": digest.blake3}
    _edit(copy, lambda data: data["files"].update({"model.so": entry}))
    with pytest.raises(ArtifactError, match=r"model\.so cannot be loaded"):
        load(copy)


@pytest.mark.parametrize("name", ["model.so", "weights.bin", "golden.bin", "manifest.json"])
def test_what_is_no_regular_file(copy: Path, name: str) -> None:
    """A pipe would be waited for, a device never ends."""
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
        path = copy / name
        path.unlink() if not path.is_dir() else path.rmdir()
        make(path)
        with pytest.raises(ArtifactError, match=f"{name}.*not a regular file"):
            verify_files(copy)
        if name != "golden.bin":
            with pytest.raises(ArtifactError, match="not a regular file"):
                load(copy)


def test_golden_vectors_are_checked_when_they_are_read(copy: Path) -> None:
    with load(copy) as module:
        data = bytearray((copy / "golden.bin").read_bytes())
        data[-1] ^= 1
        (copy / "golden.bin").write_bytes(data)
        with pytest.raises(ArtifactError, match=r"golden\.bin: does not match its digest"):
            module.golden()


@pytest.mark.parametrize("damage", ["overwrite", "truncate", "replace"])
def test_files_that_change_under_a_running_module(copy: Path, damage: str) -> None:
    x = np.ones((1, 3, 16, 16), "float32")
    with load(copy) as module:
        expected = module.run([x])
        for name in ("model.so", "weights.bin"):
            path = copy / name
            size = path.stat().st_size
            if damage == "truncate":
                os.truncate(path, 0)
            elif damage == "overwrite":
                with open(path, "r+b") as stream:
                    stream.write(b"\x5a" * size)
            else:
                path.unlink()
                path.write_bytes(bytes(size))
        context = module.context()
        for ran in (module, context):
            assert all(map(np.array_equal, ran.run([x]), expected))


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_what_was_checked_is_what_is_used(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another file by that name nor other bytes in it reach the module in between."""
    checked = module_file._digest

    def check_then_change(descriptor: int) -> FileDigest:
        digest = checked(descriptor)
        with open(copy / name, "r+b") as stream:
            stream.write(b"\x5a" * 1000)
        (copy / name).unlink()
        (copy / name).write_bytes(b"other")
        return digest

    manifest = read_manifest(copy)
    monkeypatch.setattr(module_file, "_digest", check_then_change)
    descriptor = module_file.open_checked(copy / name, manifest)
    monkeypatch.undo()
    with os.fdopen(descriptor, "rb") as stream:
        assert digest_bytes(stream.read()) == manifest.files[name]


def test_weights_from_a_bound_on_are_mapped_from_the_file_that_was_checked(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "MAP_FROM_BYTES", 1)
    with load(copy) as module:
        maps = Path("/proc/self/maps").read_text()
        assert str(copy / "model.so") in maps
        golden = module.golden()
        assert golden is not None
        module.run(golden.inputs)


def test_loading_and_running_needs_no_tvm(network_folder: Path) -> None:
    code = (
        "import sys, numpy, tinsmith\n"
        f"module = tinsmith.load({str(network_folder)!r})\n"
        "module(numpy.zeros((1, 3, 16, 16), 'float32'))\n"
        "print([m for m in ('tvm', 'tvm_ffi', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_is_quick(network_folder: Path) -> None:
    """The least of several times, in seconds of the processor: other load adds to both."""
    load(network_folder).close()
    spent = []
    for _ in range(10):
        begin = time.process_time()
        load(network_folder).close()
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.05
