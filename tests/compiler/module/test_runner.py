"""tinsmith-run: the module as a static program."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, lowered, random_inputs
from tvm import relax

from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.writer import write_module


def _run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "tinsmith-run"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_info(network_folder: Path) -> None:
    done = _run(network_folder, "info")
    assert done.returncode == 0
    assert "model small" in done.stdout
    assert "input x0 float32 (1, 3, 16, 16)" in done.stdout
    assert "output y0 float32 (8, 10)" in done.stdout


def test_it_is_static(network_folder: Path) -> None:
    header = (network_folder / "tinsmith-run").read_bytes()
    assert b"/lib64/ld-" not in header  # no dynamic linker is asked for


@pytest.mark.parametrize("threads", ["1", "3"])
def test_verify(network_folder: Path, threads: str) -> None:
    done = _run(network_folder, "--threads", threads, "verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == 2


def test_verify_finds_a_wrong_result(network_folder: Path, tmp_path: Path) -> None:
    golden = bytearray((network_folder / "golden.bin").read_bytes())
    golden[-4:] = np.float32(100).tobytes()  # last element of the last output
    (tmp_path / "golden.bin").write_bytes(golden)
    done = _run(network_folder, "verify", tmp_path / "golden.bin")
    assert done.returncode == 1
    assert re.search(r"y1: .*FAILED", done.stdout)
    assert re.search(r"y0: .*ok", done.stdout)


def test_bench(network_folder: Path) -> None:
    done = _run(network_folder, "--threads", "2", "bench", "20")
    assert done.returncode == 0
    assert re.fullmatch(
        r"20 runs, 2 threads: median [\d.]+ ms, p95 [\d.]+ ms, best [\d.]+ ms\n", done.stdout
    )


@pytest.mark.parametrize("raw", [False, True])
def test_run(network_folder: Path, tmp_path: Path, raw: bool) -> None:
    (x,) = random_inputs(NETWORK_INPUT, 5)
    path = tmp_path / "x"
    if raw:
        path.write_bytes(x.tobytes())
    else:
        with open(path, "wb") as file:
            np.save(file, x)
    done = _run(network_folder, "run", "-o", tmp_path / "result_", path)
    assert done.returncode == 0, done.stderr
    with load(network_folder) as module:
        for name, expected in module(x).items():
            result = np.load(tmp_path / f"result_{name}.npy")
            # musl's expf is not glibc's.
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 16, 16), "float64"), "dtype"),
        (np.zeros((1, 3, 16, 15), "float32"), "shape"),
        (np.asfortranarray(np.zeros((1, 3, 16, 16), "float32")), "Fortran"),
    ],
)
def test_foreign_inputs(
    network_folder: Path, tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    done = _run(network_folder, "run", tmp_path / "x.npy")
    assert done.returncode == 2
    assert message in done.stderr


def test_mistakes(network_folder: Path, tmp_path: Path) -> None:
    for arguments in ((), ("dance",)):
        done = _run(network_folder, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage:" in done.stderr
    assert "No such file" in _run(network_folder, "run", tmp_path / "none").stderr
    assert "one file per input" in _run(network_folder, "run").stderr
    (tmp_path / "short").write_bytes(b"1234")
    assert "shorter" in _run(network_folder, "run", tmp_path / "short").stderr
    assert "shorter" in _run(network_folder, "verify", tmp_path / "short").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--threads", "abc", "bench"),
        ("--threads", "-1", "bench"),
        ("--threads", "257", "bench"),
        ("--threads", "2x", "bench"),
        ("--threads", "", "bench"),
        ("--threads", " 2", "bench"),
        ("bench", "99999999999999"),
        ("bench", "99999999999999999999999999999999"),
        ("bench", "0"),
        ("bench", "-5"),
        ("bench", "1e3"),
        ("bench", "+3"),
    ],
)
def test_numbers_are_digits_within_bounds(network_folder: Path, arguments: tuple[str, ...]) -> None:
    done = _run(network_folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"tinsmith-run: .*: expected a number from \d+ to \d+\n", done.stderr)


def test_arguments_that_nothing_takes(network_folder: Path) -> None:
    for arguments in (("info", "x"), ("verify", "a", "b"), ("bench", "1", "2"), ("--threads", "2")):
        done = _run(network_folder, *arguments)
        assert (done.returncode, done.stdout) == (2, "") and "usage:" in done.stderr
    assert _run(network_folder, "--help").returncode == 0


def test_options_stand_anywhere(network_folder: Path) -> None:
    for arguments in (("bench", "--threads", "2", "5"), ("bench", "5", "--threads", "2")):
        done = _run(network_folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("5 runs, 2 threads")
    assert "usage:" in _run(network_folder, "bench", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "--thread", "2"), "--thread: no such option"),
        (("--speed", "9", "info"), "--speed: no such option"),
        (("bench", "--threads"), "--threads: give its value"),
        (("run", "--dims"), "--dims: give its value"),
        (("bench", "--dims", "n=2"), "n=2: is no open dimension"),
    ],
)
def test_wrong_options_are_named(
    network_folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = _run(network_folder, *arguments)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_only_files_are_read(network_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        for command in ("run", "verify"):
            done = _run(network_folder, command, path)
            assert (done.returncode, done.stdout) == (2, "") and "regular file" in done.stderr
        done = _run(network_folder, "--weights", path, "bench", "1")
        assert done.returncode == 2 and "not a file" in done.stderr


def test_outputs_whose_names_are_alike(tmp_path: Path) -> None:
    """Each gets a file of its own, and the program tells which."""
    names = ("a/b", "a_b", "a b", "a_b_2", "../a_b", "x" * 300)

    def each(x: relax.Expr) -> relax.Expr:
        parts = [relax.op.add(x, relax.const(float(i), "float32")) for i in range(len(names))]
        return relax.Tuple(parts)

    model = dataclasses.replace(lowered(each, (((2,), "float32"),), len(names)), output_names=names)
    folder = write_module(model, tmp_path / "m", forms=("runner",)).path
    np.zeros(2, "float32").tofile(tmp_path / "x")
    (tmp_path / "out").mkdir()
    done = _run(folder, "run", "-o", f"{tmp_path}/out/", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len({line.partition(" ")[0] for line in lines}) == len(names)
    for i, (line, name) in enumerate(zip(lines, names, strict=True)):
        path, _, said = line.partition(" ")
        assert np.load(path).tolist() == [i, i] and Path(path).parent == tmp_path / "out"
        assert said == ("" if Path(path).name == f"{name}.npy" else f"(output {name})")
    assert lines[1] == f"{tmp_path}/out/a_b.npy"  # who has such a name keeps it


def test_weights_are_needed(network_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(network_folder, tmp_path / "copy"))
    (copy / "weights.bin").unlink()
    done = _run(copy, "verify")
    assert done.returncode == 2
    assert "cannot open the weights" in done.stderr
    done = _run(copy, "--weights", network_folder / "weights.bin", "verify")
    assert done.returncode == 0
    (copy / "weights.bin").write_bytes(b"too short")
    assert "size that the module expects" in _run(copy, "verify").stderr
