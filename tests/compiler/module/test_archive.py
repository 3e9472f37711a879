"""A module as one file: what is written, what is loaded, and what is refused."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from small_networks import NETWORK_INPUT, random_inputs
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.errors import ArtifactError, BuildError, ConfigError
from tinsmith.compiler.module import machine
from tinsmith.compiler.module.archive import pack, unpack
from tinsmith.compiler.module.loader import load, verify_files


@pytest.fixture(scope="module")
def archive(network_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "small.tar.zst"
    assert pack(network_folder, path) == path.stat().st_size
    return path


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every temporary folder is deleted, whatever happens."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert not list(folder.iterdir())


def test_the_archive_computes_what_the_folder_does(network_folder: Path, archive: Path) -> None:
    inputs = random_inputs(NETWORK_INPUT)
    with load(network_folder) as folder:
        expected = folder.run(inputs)
    module = load(archive)
    for found, wanted in zip(module.run(inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    golden = module.golden()
    assert golden is not None
    np.testing.assert_array_equal(golden.inputs[0], inputs[0])
    unpacked = module.path
    module.close()
    assert unpacked.is_dir()
    del module
    assert not unpacked.exists()


def test_all_files_come_back(network_folder: Path, archive: Path) -> None:
    assert verify_files(archive) == verify_files(network_folder)
    scratch = unpack(archive)
    folder = scratch.path
    for path in network_folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert os.access(folder / path.name, os.X_OK) == os.access(path, os.X_OK)
    scratch.close()


def test_equal_modules_give_equal_archives(
    network_folder: Path, archive: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(network_folder, tmp_path / "copy"))
    os.utime(copy / "weights.bin", (1, 1))
    (copy / "notes.txt").write_text("no part of the module")
    tinsmith.pack(copy, tmp_path / "again.tar.zst")
    assert (tmp_path / "again.tar.zst").read_bytes() == archive.read_bytes()
    pack(copy, tmp_path / "fast.tar.zst", level=1)
    assert verify_files(tmp_path / "fast.tar.zst") == verify_files(copy)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_changed_byte_is_one_line(archive: Path, tmp_path: Path, share: float) -> None:
    data = bytearray(archive.read_bytes())
    data[int(share * len(data)) + 5] ^= 0x55
    damaged = tmp_path / "damaged.tar.zst"
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged\.tar\.zst: damaged archive: ") as caught:
        load(damaged)
    assert "\n" not in str(caught.value) and "temporary" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_one_line(archive: Path, tmp_path: Path, share: float) -> None:
    data = archive.read_bytes()
    short = tmp_path / "short.tar.zst"
    short.write_bytes(data[: max(6, int(share * len(data)))])
    with pytest.raises(ArtifactError, match=r"short\.tar\.zst: damaged archive: "):
        load(short)


def repacked(archive: Path, path: Path, change) -> Path:
    """The archive with other members: `change` maps the list of (member, content) to another."""
    with zstandard.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with zstandard.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for member, content in change(members):
            tar.addfile(member, io.BytesIO(content))
    return path


def renamed(name: str, kind: bytes = tarfile.REGTYPE):
    def change(members):
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        return [*members, (member, b"")]

    return change


def sparse(members):
    member = tarfile.TarInfo("holes")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return [(member, b""), *members]


def other_content(members):
    return [
        (member, bytes(len(content)) if member.name == "weights.bin" else content)
        for member, content in members
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("../outside"), "'../outside' does not belong there"),
        (renamed("/tmp/outside"), "'/tmp/outside' does not belong there"),
        (renamed("model.so"), "'model.so' does not belong there"),
        (renamed("manifest.json"), "'manifest.json' does not belong there"),
        (renamed("link", tarfile.SYMTYPE), "'link' does not belong there"),
        (lambda members: members[1:], "does not belong there"),
        (lambda members: members[:-1], "No such file"),
        (lambda members: [], "not a compiled module"),
        (sparse, ""),
        (other_content, "weights.bin: does not match its digest"),
    ],
)
def test_foreign_members_are_refused(archive: Path, tmp_path: Path, change, message: str) -> None:
    changed = repacked(archive, tmp_path / "changed.tar.zst", change)
    with pytest.raises(ArtifactError, match="damaged archive: ") as caught:
        load(changed)
    assert message in str(caught.value)
    assert not (tmp_path / "outside").exists()


def test_a_link_in_place_of_a_file_is_refused(archive: Path, tmp_path: Path) -> None:
    def change(members):
        for member, _ in members:
            if member.name == "golden.bin":
                member.type, member.size, member.linkname = tarfile.SYMTYPE, 0, "/etc/passwd"
        return members

    changed = repacked(archive, tmp_path / "changed.tar.zst", change)
    with pytest.raises(ArtifactError, match=r"'golden\.bin' does not belong there"):
        load(changed)


def test_another_machine_s_archive_is_named(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "process_architecture", lambda: "vax")
    with pytest.raises(ArtifactError, match=f"^{archive}: compiled for"):
        load(archive)


def test_what_cannot_be_packed_or_read(network_folder: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither a module's folder nor an archive"):
        load(network_folder / "model.h")
    with pytest.raises(ConfigError, match="--level 20: expected an integer from 1 to 19"):
        pack(network_folder, tmp_path / "a", level=20)
    with pytest.raises(ArtifactError, match="not a compiled module"):
        pack(archive, tmp_path / "a")
    with pytest.raises(BuildError, match="is a folder"):
        pack(network_folder, tmp_path)
    with pytest.raises(BuildError, match="cannot be written: No such file"):
        pack(network_folder, tmp_path / "nowhere" / "a")
    copy = Path(shutil.copytree(network_folder, tmp_path / "copy"))
    (copy / "model.h").write_text("changed")
    (tmp_path / "a").write_text("as it was")
    with pytest.raises(ArtifactError, match=r"model\.h: does not match"):
        pack(copy, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "as it was"


def test_commands_take_archives(network_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.tar.zst"
    packed = CliRunner().invoke(app, ["pack", str(network_folder), "-o", str(path)])
    assert packed.exit_code == 0, packed.output
    assert "% of the" in packed.stdout
    verified = CliRunner().invoke(app, ["verify", str(path)])
    assert verified.exit_code == 0, verified.output
    assert "golden vectors" in verified.stdout
    timed = CliRunner().invoke(app, ["bench", str(path), "--runs", "1"])
    assert timed.exit_code == 0, timed.output
