"""The C runtime under sanitizers: `make sanitize` runs this file alone."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.module.write.driver import RUNTIME_FOLDER

_COMPILER = next(filter(shutil.which, ("gcc", "clang")), None)
# ThreadSanitizer knows no threads after a fork, AddressSanitizer's own locks stay taken there.
_RUNS = [
    ("thread", "contexts", ""),
    ("address,undefined", "contexts", ""),
    ("undefined", "forks", ""),
    pytest.param("undefined", "forks", "-DMAP_WEIGHTS=1", marks=pytest.mark.slow),
    ("undefined", "forks", "-DNO_WIPING"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sanitizers") / "weights.bin"
    np.arange(256, dtype="float32").tofile(path)
    return path


def _build(source: Path, program: Path, sanitizers: str, *options: str) -> None:
    if _COMPILER is None:
        pytest.skip("needs gcc or clang")
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-fsanitize={sanitizers}"]
    flags += ["-fno-sanitize-recover=all", f"-I{RUNTIME_FOLDER}"]
    command = [_COMPILER, *flags, *options, str(source), "-o", str(program), "-lm", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"{_COMPILER} has no libraries for -fsanitize={sanitizers}")
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize(("sanitizers", "scenario", "option"), _RUNS)
def test_contexts_threads_and_forks(
    weights: Path, tmp_path: Path, sanitizers: str, scenario: str, option: str
) -> None:
    program = tmp_path / "check"
    source = Path(__file__).with_name("runtime_check.c")
    _build(source, program, sanitizers, *filter(None, [option]))
    done = subprocess.run(
        [str(program), str(weights), scenario, os.environ.get("TINSMITH_ROUNDS", "20")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def _npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def _headers() -> list[bytes]:
    """Files whose headers are written in other ways than numpy does."""
    parts = [
        ["{", "{ ", "", "{{"],
        ["'descr': ", '"descr":', "'desc': ", ""],
        ["'<f4'", '"<f4"', "'<f8'", "'|f4'", "[('a', '<f4')]", "'<f4", "'" + "f" * 90 + "'"],
        [", 'fortran_order': ", ",'fortran_order':"],
        ["False", "True", "0", "Falsehood"],
        [", 'shape': ", " 'shape': ", ", 'shape': (2, 3), 'shape': "],
        ["(2, 3)", "(2,3,)", "(2, 3", "(3, 2)", "(6,)", "(6)", "()", "(,)", "(2,, 3)", "(02, 3)"],
        ["", ", 1)", "(99999999999999999999, 3)", "(18446744073709551618, 3)", "(-2, -3)"],
        ["}", ", }", ", 'more': 1}", "}}", "", "} #"],
    ]
    plain = [part[0] for part in parts]
    headers = []
    for position, choices in enumerate(parts):
        for choice in choices:
            headers.append("".join([*plain[:position], choice, *plain[position + 1 :]]) + "  \n")
    start = b"\x93NUMPY\x01\x00"
    content = np.arange(6, dtype="float32").tobytes()
    return [start + struct.pack("<H", len(h)) + h.encode() + content for h in headers]


def _mutants(count: int) -> list[bytes]:
    generator = random.Random(0)
    array = np.arange(6, dtype="float32").reshape(2, 3)
    files = [_npy(array, version) for version in ((1, 0), (2, 0), (3, 0))]
    files += [_npy(np.asfortranarray(array)), array.tobytes(), b""]
    mutants = files + _headers()
    while len(mutants) < count:
        data = bytearray(generator.choice(files))
        for _ in range(generator.choice((1, 1, 2, 8))):
            at = generator.randrange(min(len(data), 70)) if data else 0
            kind = generator.randrange(5)
            if kind == 0 and data:
                data[at] = generator.randrange(256)
            elif kind == 1:
                data[at : at + generator.randrange(9)] = b""
            elif kind == 2:
                data[at:at] = bytes(generator.choices(b"(){},:'0123 -\x00\xff", k=3))
            elif kind == 3:
                del data[generator.randrange(len(data) + 1) :]
            else:
                data += bytes(generator.randrange(4))
        mutants.append(bytes(data))
    return mutants


def _read_by_numpy(data: bytes) -> np.ndarray | None:
    """What the bytes of float32 (2, 3) are for numpy; without its magic number they are raw."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return np.frombuffer(data, "<f4").reshape(2, 3) if len(data) == 24 else None
    stream = io.BytesIO(data)
    try:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:  # whatever numpy raises for such files
        return None
    return array if not stream.read() and array.dtype == "<f4" and array.shape == (2, 3) else None


def test_npy_files_as_numpy_reads_them(tmp_path: Path) -> None:
    program = tmp_path / "npy"
    _build(
        Path(__file__).with_name("npy_check.c"),
        program,
        "address,undefined",
        "-Wno-unused-function",
    )
    mutants = _mutants(int(os.environ.get("TINSMITH_MUTANTS", "4000")))
    files = tmp_path / "files"
    files.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in mutants))
    done = subprocess.run([str(program), str(files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == len(mutants)
    accepted = 0
    for data, answer in zip(mutants, answers, strict=True):
        array = _read_by_numpy(data)
        if answer.startswith("1"):
            assert array is not None, data
            total = 0
            for byte in array.tobytes():
                total = (total * 31 + byte) % 2**32
            assert answer == f"1 {total}", data
            accepted += 1
    assert accepted > 100
    for data in (*mutants[:3], *_headers()[:2]):
        assert answers[mutants.index(data)].startswith("1"), data
