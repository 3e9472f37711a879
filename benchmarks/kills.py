"""Kill compile, tune, prune and pack at random moments, and see what is left.

    python benchmarks/kills.py [--kills 60] [--only compile,pack] [--seed 0] [--json FILE]

Each command is run once to its end, which tells how long it takes. Then it is started again and
again and killed (SIGKILL, the process alone, not what it has started), two times of three while it
writes: once it has made its scratch file or folder. After each kill, by what is on the disk:

| what | must hold |
|---|---|
| what was there before (a module, an archive, a model) | is the old one or the new one, complete |
| the records of tuning | can be read, and no line but the last may be torn |
| processes that the command had started | are gone within ten seconds |
| the same command again | succeeds; no scratch is left, of its own or the killed one's |

Exit status 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

import compiler
from compiler.module.loader import verify_files
from compiler.tuning.store import Store

MARK = "tinsmith-held-"
# ONNX Runtime's.
TELEMETRY = ".ses"
ORPHAN_SECONDS = 10
WRITING_SHARE = 2 / 3
LIMIT_SECONDS = 900


@dataclass
class Drill:
    """A command under trial. `arguments` are its own, `intact` raises if its result is no good."""

    name: str
    arguments: list[str]
    intact: Callable[[], None]


@dataclass
class Outcome:
    """How many kills of a command hit it, and while it wrote; what did not hold afterwards."""

    name: str
    seconds: float
    kills: int = 0
    while_writing: int = 0
    too_late: int = 0
    faults: list[str] = field(default_factory=list)


class Ground:
    """A folder for results and one for temporary files, both empty of scratch when all is well."""

    def __init__(self, folder: Path) -> None:
        self.results, self.temporary = folder / "results", folder / "tmp"
        self.results.mkdir()
        self.temporary.mkdir()
        self._mark = f"TINSMITH_DRILL={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self._environment = os.environ | {name: value, "TMPDIR": str(self.temporary)}

    def start(self, drill: Drill) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, "-m", "compiler.cli", *drill.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def scratch(self) -> list[str]:
        """What lies about: scratch files and folders anywhere, anything among temporary files."""
        found = [path for path in self.results.rglob("*") if MARK in path.name]
        found += [path for path in self.temporary.iterdir() if path.name != TELEMETRY]
        return [str(path) for path in found]

    def orphans(self) -> list[str]:
        """Command lines of the processes that are still there after some seconds."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (found := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _alive(self) -> list[str]:
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


def write_model(path: Path) -> None:
    """image (1, 3, 16, 16) -> three convolutions of 32 channels -> mean -> scores (1, 10)."""
    generator = np.random.default_rng(0)
    nodes, weights, before = [], [], "image"
    for i, channels in enumerate((3, 32, 32)):
        weight = generator.standard_normal((32, channels, 3, 3)).astype("float32") / channels
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        before = f"r{i}"
    weight = generator.standard_normal((32, 10)).astype("float32")
    weights.append(numpy_helper.from_array(weight, "last"))
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "last"], ["scores"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "drill", [image], [scores], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def drills(model: Path, results: Path) -> list[Drill]:
    """The four commands; `results` gets their results, and what packing packs."""
    module, pruned = results / "module", results / "pruned.onnx"
    archive, log = results / "module.tar.zst", results / "log"
    tuned = ["--minutes", "0.5", "--trials", "8", "--fresh", "--log", str(log)]

    def records_are_whole() -> None:
        store = Store(log)
        damaged = sum(shelf.damaged() for shelf in store.shelves())
        if damaged > 1:
            raise ValueError(f"{damaged} damaged lines")

    def loads() -> None:
        verify_files(module)
        with compiler.load(module, threads=1) as loaded:
            golden = loaded.golden()
            assert golden is not None
            loaded.run(golden.inputs)

    return [
        Drill("compile", ["compile", str(model), "-o", str(module)], loads),
        Drill(
            "pack",
            ["pack", str(module), "-o", str(archive), "--level", "19"],
            lambda: (verify_files(archive), None)[1],
        ),
        Drill(
            "prune",
            ["prune", str(model), "--ratio", "0.2", "-o", str(pruned)],
            lambda: onnx.checker.check_model(str(pruned)),
        ),
        Drill("tune", ["tune", str(model), *tuned], records_are_whole),
    ]


def run_to_the_end(ground: Ground, drill: Drill) -> str:
    """What was wrong with a run that nobody kills; empty if nothing."""
    process = ground.start(drill)
    try:
        _, told = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"the command hung for {LIMIT_SECONDS} s"
    if process.returncode:
        return f"exit status {process.returncode}: {told.strip()[-300:]}"
    if left := ground.scratch():
        return f"left {', '.join(left)}"
    return checked(drill)


def checked(drill: Drill) -> str:
    """What is wrong with the command's result; empty if nothing."""
    try:
        drill.intact()
    except Exception as error:  # whatever a damaged result leads to
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def kill_once(ground: Ground, drill: Drill, outcome: Outcome, chance: random.Random) -> None:
    """Start the command, kill it at a random moment, look, and run it again."""
    writing = chance.random() < WRITING_SHARE
    process = ground.start(drill)
    begin = time.monotonic()
    if writing:
        while process.poll() is None and not ground.scratch():
            time.sleep(0.005)
    rest = max(0.05, outcome.seconds - (time.monotonic() - begin))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, rest if writing else outcome.seconds))
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    outcome.kills += not ended
    outcome.too_late += ended
    outcome.while_writing += not ended and bool(ground.scratch())
    faults = [f"lives on: {line[:200]}" for line in ground.orphans()]
    faults += [f"after the kill: {wrong}" for wrong in [checked(drill)] if wrong]
    faults += [f"run again: {wrong}" for wrong in [run_to_the_end(ground, drill)] if wrong]
    outcome.faults += faults


def main() -> int:
    """Run the drills that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="of each command")
    parser.add_argument("--only", default="", help="commands, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        model = Path(folder) / "drill.onnx"
        write_model(model)
        for drill in drills(model, ground.results):
            asked = options.only.split(",") if options.only else [drill.name]
            if drill.name not in asked and not (drill.name == "compile" and "pack" in asked):
                continue
            begin = time.monotonic()
            outcome = Outcome(drill.name, 0.0)
            if wrong := run_to_the_end(ground, drill):
                outcome.faults.append(f"before any kill: {wrong}")
            outcome.seconds = time.monotonic() - begin
            while drill.name in asked and outcome.kills < options.kills:
                kill_once(ground, drill, outcome, chance)
                told = f"{drill.name}: {outcome.kills} kills, {len(outcome.faults)} faults"
                print(told, file=sys.stderr, flush=True)
                if outcome.too_late > options.kills:
                    break
            outcomes.append(outcome)
    table = Table("command", "takes", "kills", "while it wrote", "too late", "faults")
    for outcome in outcomes:
        cells = (outcome.kills, outcome.while_writing, outcome.too_late, len(outcome.faults))
        table.add_row(outcome.name, f"{outcome.seconds:.1f} s", *map(str, cells))
    console = Console()
    console.print(table)
    for outcome in outcomes:
        for fault in outcome.faults:
            console.print(f"{outcome.name}: {fault}", markup=False)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
