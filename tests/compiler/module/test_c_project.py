"""Programs in C that find a module, and tools that look into one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, random_inputs

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.module.write.c_project import package_name, write_project
from tinsmith.compiler.module.write.elf import drop_debug_sections


@pytest.fixture
def folder(network_folder: Path, tmp_path: Path) -> Path:
    """A copy to work in, in a folder with a space."""
    return Path(shutil.copytree(network_folder, tmp_path / "a folder" / "small"))


@pytest.mark.parametrize("library", [["model.a", "-lm", "-lpthread"], ["./model.so"]])
def test_the_example_computes_what_the_module_does(folder: Path, library: list[str]) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu", "-std=c99"]
    command += ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "example.c", *library, "-o", "example"], cwd=folder, check=True)
    image = random_inputs(NETWORK_INPUT)[0]
    image.tofile(folder / "image.raw")
    with load(folder) as module:
        expected = module(image)
    for arguments, outputs in (
        (["image.raw"], expected),
        ([], None),
    ):
        done = subprocess.run(
            ["./example", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        assert [line.partition(":")[0] for line in lines] == [
            "y0 float32[8, 10]", "y1 float32[8, 256]",
        ]  # fmt: skip
        if outputs is not None:
            shown = [float(number) for number in lines[0].partition(":")[2].split()]
            np.testing.assert_allclose(shown, outputs["y0"].ravel()[:8], rtol=1e-4, atol=1e-6)
    (folder / "short.raw").write_bytes(b"123")
    done = subprocess.run(
        ["./example", "short.raw"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "example: short.raw: has another size than the input\n"


def test_files_name_the_module_by_where_they_are(network_folder: Path) -> None:
    cmake = (network_folder / "tinsmith-config.cmake").read_text()
    for target in ("Tinsmith::small ", "Tinsmith::small_static ", "Tinsmith::module "):
        assert f"add_library({target}" in cmake
    pc = (network_folder / "tinsmith-small.pc").read_text()
    assert f"Version: {tinsmith_version()}\n" in pc and "Name: tinsmith-small\n" in pc
    for text in (cmake, pc):
        assert str(network_folder) not in text
        assert "{{" not in text and "{prefix}" not in text
    assert cmake.count("(") == cmake.count(")")
    assert len(re.findall(r"^\s*if\(", cmake, re.M)) == cmake.count("endif()")


@pytest.mark.parametrize("name", ["a*/b", "9 lives", "x" * 300, 'quo"te\n#', "ünï"])
def test_names_of_models_end_nothing(name: str, tmp_path: Path) -> None:
    write_project(tmp_path, name, "native", "0+unknown")
    assert len(list(tmp_path.iterdir())) == 4
    example = (tmp_path / "example.c").read_text()
    assert example.startswith("/* ") and example.count("*/") == example.count("/*")
    description = [
        line for line in (tmp_path / f"{package_name(name)}.pc").read_text().splitlines()
        if line.startswith("Description:")
    ]  # fmt: skip
    assert len(description) == 1


@pytest.mark.slow
def test_cmake_and_pkg_config_find_the_module(folder: Path, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("cmake", "cc", "pkg-config"))):
        pytest.skip("cmake, cc or pkg-config is not installed")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(user C)\n"
        "find_package(Tinsmith 0.1 REQUIRED)\n"
        f'add_executable(static "{folder}/example.c")\n'
        "target_link_libraries(static PRIVATE Tinsmith::module_static)\n"
        f'add_executable(shared "{folder}/example.c")\n'
        "target_link_libraries(shared PRIVATE Tinsmith::small)\n"
    )
    subprocess.run(["cmake", f"-DTinsmith_DIR={folder}", "."], cwd=tmp_path, check=True)
    subprocess.run(["cmake", "--build", "."], cwd=tmp_path, check=True)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "tinsmith-small"],
        env={"PKG_CONFIG_PATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run(
        ["sh", "-c", f"cc '{folder}/example.c' {flags} -o packaged"], cwd=tmp_path, check=True
    )
    for program in ("static", "shared", "packaged"):
        done = subprocess.run(
            [tmp_path / program], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stdout.startswith("y0 float32[8, 10]:"), done.stderr


def test_symbols_name_the_kernels_and_debug_sections_are_gone(network_folder: Path) -> None:
    for file in ("model.so", "tinsmith-run"):
        content = (network_folder / file).read_bytes()
        for kernel in ("fused_conv2d_add_relu", "matmul", "softmax"):
            assert f"\0small_k_{kernel}_0\0".encode() in content, (file, kernel)
        assert len(content) < 400_000


def test_rewriting_a_library_again_changes_nothing(folder: Path) -> None:
    before = (folder / "model.so").read_bytes()
    drop_debug_sections(folder / "model.so")
    assert (folder / "model.so").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x02"])
def test_what_is_no_library_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    path.write_bytes(damage.ljust(100, b"\0") if damage else b"")
    with pytest.raises(BuildError, match=r"model\.so: the linker wrote"):
        drop_debug_sections(path)
