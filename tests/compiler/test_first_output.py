"""Every command shows something at once: before that, little is imported and nothing heavy.

Modules are counted, not seconds: half a second on a slow machine is some 500 modules of Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tinsmith.compiler.cli.commands import COMMANDS

HEAVY = ("tvm", "tvm_ffi", "numpy", "msgspec", "blake3", "zstandard", "onnx", "onnxruntime",
         "onnxscript", "openvino", "scipy", "xgboost", "torch")  # fmt: skip
MOST_MODULES = 450

# Runs each command line in a fork, on a terminal, until it writes something that can be read.
_RUNNER = """
import json, os, re, sys

class Terminal:
    encoding = "utf-8"
    def __init__(self, answer): self.answer = answer
    def isatty(self): return True
    def fileno(self): raise OSError("no file")
    def flush(self): pass
    def write(self, text):
        shown = re.sub(r"\\x1b\\[[^a-zA-Z]*[a-zA-Z]", "", text).strip()
        if shown:
            told = json.dumps([shown[:200], sorted(sys.modules)])
            with os.fdopen(self.answer, "w") as answer: answer.write(told)
            os._exit(0)
        return len(text)

answers = []
for line in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.environ["TERM"] = "xterm"
        sys.stdout = sys.stderr = Terminal(writing)
        sys.argv = ["tinsmith", *line]
        from tinsmith.compiler.cli import main
        main()
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer: answers.append(json.loads(answer.read() or "null"))
    os.wait()
print(json.dumps(answers))
"""

LINES = {
    "--help": "Usage: tinsmith",
    "--version": "tinsmith ",
    "compile --help": "Usage: tinsmith compile",
    "logs --help": "Usage: tinsmith logs",
    "compile model.onnx -o new": "compile model.onnx: starting",
    "prune model.onnx --ratio 0.3 -o new.onnx": "prune model.onnx: starting",
    "sensitivity model.onnx --calibration random": "sensitivity model.onnx: starting",
    "tune model.onnx": "tune model.onnx: starting",
    "run module": "run: starting",
    "bench module": "bench: starting",
    "verify module": "verify: starting",
    "inspect module": "inspect: starting",
    "pack module -o new.tar.zst": "pack: starting",
    "targets": "",
    "demo -o new": "demo: compile: starting",
    "doctor": "doctor: starting",
    "logs list --log records": "logs list: starting",
    "logs show --log records": "logs show: starting",
    "logs prune --log records": "logs prune: starting",
    "logs export new --log records": "machine: 0 of 0 records",
    "logs merge records --log new": "machine: 0 of 0 records",
}
# What reads records checks them, by msgspec among others.
READS_RECORDS = ("logs",)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """What each command line shows first, and the modules imported by then."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "model.onnx").write_text("not looked into")
    (folder / "module").mkdir()
    (folder / "module" / "manifest.json").write_text("{}")
    (folder / "records" / "machine").mkdir(parents=True)
    (folder / "records" / "machine" / "target.json").write_text("{}")
    (folder / "records" / "store.json").write_text('{"format": 1}')
    ran = subprocess.run(
        [sys.executable, "-c", _RUNNER, json.dumps([line.split() for line in LINES])],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr
    return {
        line: (told[0], set(told[1])) if told else ("", set())
        for line, told in zip(LINES, json.loads(ran.stdout), strict=True)
    }


def test_every_command_is_tried() -> None:
    assert {line.split()[0] for line in LINES} >= set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_something_is_shown_before_anything_heavy_is_imported(
    line: str, first: dict[str, tuple[str, set[str]]]
) -> None:
    shown, modules = first[line]
    assert shown and LINES[line] in shown
    light = ("msgspec", "blake3") if line.startswith(READS_RECORDS) else ()
    assert not modules & (set(HEAVY) - set(light))
    assert len(modules) < MOST_MODULES


def test_a_command_imports_no_other(first: dict[str, tuple[str, set[str]]]) -> None:
    _, modules = first["run module"]
    assert "tinsmith.compiler.cli.run_command" in modules
    assert not {name for name in modules if name.endswith(("compile_command", "tune_command"))}
    assert "rich" not in first["--version"][1]
