"""Mistakes that need no look into a model are told before TVM and other runtimes are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinsmith.compiler.cli.commands import COMMANDS

HEAVY = ("tvm", "onnx", "onnxruntime", "onnxscript", "openvino", "scipy", "xgboost", "torch")

# Runs command lines one after the other; for each: exit code, both streams, what got imported.
_RUNNER = """
import contextlib, io, json, sys
from tinsmith.compiler.cli import app
heavy, lines = json.loads(sys.argv[1])
results = []
for line in lines:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(line)
        except SystemExit as left:
            code = left.code
    found = [name for name in heavy if name in sys.modules]
    results.append([code, out.getvalue(), err.getvalue(), found])
    for name in found:  # the next line is told apart by what it imports itself
        heavy.remove(name)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is needed to make mistakes: a file, an empty one, one of other files."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "model.onnx").write_text("not looked into")
    (folder / "empty.onnx").touch()
    (folder / "other").mkdir()
    (folder / "other" / "letter.txt").write_text("mine")
    os.mkfifo(folder / "pipe")
    (folder / "jobs.toml").write_text("[[job]]\nnonsense = 1\n")
    (folder / "model.pth").write_bytes(b"PK\x03\x04")
    (folder / "anything").write_bytes(b"\x1c\0\0\0TFL3")
    return folder


CASES: dict[str, tuple[str, ...]] = {
    # command line, what the message mentions; M is a file, X is not there
    "compile X -o out": ("X: no such file",),
    "compile empty.onnx -o out": ("empty.onnx: is empty",),
    "compile other -o out": ("other: is not a regular file",),
    "compile model.pth -o out": ("model.pth: a file of PyTorch", "torch.onnx.export("),
    "tune anything": ("anything: a model of TensorFlow Lite", "tf2onnx.convert --tflite"),
    "doctor --frob": ("--frob", "tinsmith doctor --help"),
    "compile pipe -o out": ("pipe: is not a regular file",),
    "compile M -o out --target pdp11": ("pdp11",),
    "compile M -o out --target sm_90": ("sm_90",),
    "compile M -o out --frob": ("--frob", "tinsmith compile --help"),
    "compile M": ("--output",),
    "compile M -o out --threads abc": ("--threads",),
    "compile M -o out --shape x=1,none": ("--shape x=1,none",),
    "compile M -o out --constant x=hello": ("--constant x=hello",),
    "compile M -o out --quantize int3": ("--quantize int3", "int8"),
    "compile M -o out --quantize int8": ("--calibration",),
    "compile M -o out --quantize int8 --calibration X": (
        "--calibration X: no such file or folder",
    ),
    "compile M -o out --quantize int8 --calibration random --observer eye": ("--observer eye",),
    "compile M -o out --quantize int8 --calibration random --equalize perhaps": ("--equalize",),
    "compile M -o out --quantize int8 --calibration random --labels X": ("--labels X",),
    "compile M -o out --quantize int8 --calibration random --evaluation X": ("--evaluation X",),
    "compile M -o out --quantize bf16 --min-agreement 0.9": ("--min-agreement 0.9",),
    "compile M -o out --observer mse": ("--observer is for quantising: add --quantize",),
    "compile M -o out --mean 0.5": ("--mean is for quantising: add --quantize",),
    "compile M -o out --mean a,b --quantize bf16": ("--mean a,b",),
    "compile M -o out --prune 7": ("7",),
    "compile M -o out --prune 0.5 --prune-criterion eye": ("eye",),
    "compile M -o M": ("M: is a file",),
    "compile M -o other": ("other: holds files that are not a compiled module",),
    "compile M -o out --log X": ("--log X: no such folder",),
    "compile M -o out --quantize bf16 --report X/report.json": ("--report",),
    "prune X --ratio 0.3 -o p.onnx": ("X: no such file",),
    "prune M --ratio 0.3 -o p.txt": ("p.txt",),
    "prune M --ratio 0.3 -o X/p.onnx": ("--output X/p.onnx: no such folder",),
    "prune M -o p.onnx": ("--ratio",),
    "prune M --ratio 0.3 -o p.onnx --target pdp11": ("pdp11",),
    "prune M --ratio 0.3 -o p.onnx --calibration X": ("--calibration X",),
    "prune M --ratio 0.3 -o p.onnx --shape x": ("--shape x",),
    "prune M --frob": ("--frob",),
    "sensitivity X --calibration random": ("X: no such file",),
    "sensitivity M --calibration X": ("--calibration X",),
    "sensitivity M --calibration random --ratios 2": ("--ratios 2",),
    "sensitivity M --calibration random --plot curves.doc": ("curves.doc",),
    "tune X": ("X: no such file",),
    "tune": ("MODEL.onnx",),
    "tune M --target pdp11": ("pdp11",),
    "tune M --shape x": ("--shape x",),
    "tune M --calibration X": ("--calibration",),
    "tune M --quantize int8 --calibration X": ("--calibration X",),
    "tune M --minutes -1": ("minutes",),
    "tune M --rpc nowhere": ("--key",),
    "tune M --rpc nowhere --key pi5": ("nowhere",),
    "tune --job X": ("X",),
    "tune --job jobs.toml": ("nonsense",),
    "run X": ("X: no such module",),
    "run other": ("other: not a compiled module",),
    "run other -o results.txt": ("results.txt",),
    "run M": ("M: neither a module's folder nor an archive",),
    "bench X": ("X: no such module",),
    "bench other": ("other: not a compiled module",),
    "bench X --runs 0": ("--runs",),
    "verify X": ("X: no such module",),
    "verify X --bisect": ("--model",),
    "verify other --model X": ("other",),
    "inspect X": ("X: no such module",),
    "pack X -o packed.tar.zst": ("X: no such module",),
    "pack other -o packed.tar.zst": ("other",),
    "targets --frob": ("--frob",),
    "demo --target pdp11": ("pdp11",),
    "demo -o M": ("M: is a file",),
    "logs list --log X": ("X: no such folder",),
    "logs show --log X": ("X: no such folder",),
    "logs merge X": ("X: no such folder",),
    "logs export out --log X": ("X: no such folder",),
    "logs prune --log X": ("X: no such folder",),
    "logs frob": ("frob",),
    "frob": ("No such command 'frob'; see tinsmith --help",),
    "compil M": ("Did you mean 'compile'? See tinsmith --help",),
}


def arguments(line: str) -> list[str]:
    return ["model.onnx" if word == "M" else word for word in line.split()]


def test_every_command_is_among_the_cases() -> None:
    tried = {line.split()[0] for line in CASES}
    assert tried >= set(COMMANDS)


def test_mistakes_are_one_line_before_anything_heavy_is_imported(place: Path) -> None:
    lines = [arguments(line) + json_ for line in CASES for json_ in ([], ["--json"])]
    ran = subprocess.run(
        [sys.executable, "-c", _RUNNER, json.dumps([list(HEAVY), lines])],
        capture_output=True,
        text=True,
        cwd=place,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    mentions = {tuple(arguments(line)): words for line, words in CASES.items()}
    for line, (code, out, err, imported) in zip(lines, json.loads(ran.stdout), strict=True):
        told = " ".join(line)
        assert code == 2, (told, err)
        assert imported == [], told
        message = err.removesuffix("\n")
        assert message.startswith("tinsmith: error: ") and "\n" not in message, (told, err)
        words = mentions[tuple(word for word in line if word != "--json")]
        assert all(word.replace("M:", "model.onnx:") in message for word in words), (told, err)
        if line[-1] == "--json":
            assert json.loads(out)["error"]["message"] in message, told
        else:
            assert out == "", told
    assert sorted(path.name for path in place.iterdir()) == [
        "anything", "empty.onnx", "jobs.toml", "model.onnx", "model.pth", "other", "pipe",
    ]  # fmt: skip


def test_help_and_version_wait_for_no_library() -> None:
    """Within half a second something is shown: all commands are known without what they use."""
    code = (
        "import sys, tinsmith.compiler.cli\n"
        "print([name for name in ('numpy', 'msgspec', 'zstandard', 'blake3', 'onnx', 'tvm') "
        "if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
