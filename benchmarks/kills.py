"""Kill compile, tune, prune and pack at random moments, and see what is left.

    python benchmarks/kills.py [--kills 60] [--only compile,pack] [--seed 0] [--json FILE]

Each command is run to its end, which tells how long it takes. Then it is started again and
again and killed (SIGKILL, the process alone, not what it has started), two times of three while it
writes: once it has made its scratch file or folder. Commands are forks of a process that has
imported the compiler, so that kills hit their work, not seconds of importing; a tuning job begins
with an empty log each time, and goes on after the kill. After each kill, by what is on the disk:

| what | must hold |
|---|---|
| what was there before (a module, an archive, a model) | is the old one or the new one, complete |
| the records of tuning | can be read, no line but the last is torn, no trial is there twice |
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
import select
import shutil
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

import tinsmith
from tinsmith.compiler.module.loader import verify_files
from tinsmith.compiler.tuning.store import Store

MARK = "tinsmith-held-"
# ONNX Runtime's.
TELEMETRY = ".ses"
ORPHAN_SECONDS = 10
WRITING_SHARE = 2 / 3
LIMIT_SECONDS = 900


@dataclass
class Drill:
    """A command under trial. `arguments` are its own, `intact` raises if its result is no good.

    `begin_anew` clears away what would leave the command nothing to do.
    """

    name: str
    arguments: list[str]
    intact: Callable[[], None]
    begin_anew: Callable[[], None] = lambda: None


@dataclass
class Outcome:
    """How many kills of a command hit it, and while it wrote; what did not hold afterwards."""

    name: str
    seconds: float
    kills: int = 0
    while_writing: int = 0
    too_late: int = 0
    faults: list[str] = field(default_factory=list)


# Forks a child for each line, the arguments of a command; tells its number, and how it ended.
_FORKS = """
import json, os, sys
import onnxruntime
import tinsmith.compiler.api, tinsmith.compiler.cli
import tinsmith.compiler.pruning, tinsmith.compiler.tuning.job

print(flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        sys.argv = ["tinsmith", *json.loads(line)]
        try:
            tinsmith.compiler.cli.main()
        except SystemExit as ended:
            os._exit(ended.code or 0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Run:
    """A command under way, in a fork of `forks`, which tells how it ended by one line."""

    def __init__(self, forks: subprocess.Popen[bytes], told: Path) -> None:
        assert forks.stdout is not None
        self._answers, self._told = forks.stdout, told
        self._pid = int(self._answers.readline())
        self._told_before = told.stat().st_size
        self.status: int | None = None

    def wait(self, seconds: float) -> bool:
        """Whether the command has ended within so many seconds."""
        if self.status is None and select.select([self._answers], [], [], seconds)[0]:
            self.status = int(self._answers.readline())
        return self.status is not None

    def kill(self) -> None:
        """Kill the command, and wait for its end."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self.status = int(self._answers.readline())

    def told(self) -> str:
        """What the command said on standard error."""
        content = self._told.read_bytes()[self._told_before :]
        return content.decode(errors="replace").strip()


class Ground:
    """A folder for results and one for temporary files, both empty of scratch when all is well.

    A context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.results, self.temporary = folder / "results", folder / "tmp"
        self.results.mkdir()
        self.temporary.mkdir()
        self._told = folder / "told"
        self._mark = f"TINSMITH_DRILL={uuid.uuid4().hex}"

    def __enter__(self) -> Ground:
        name, _, value = self._mark.partition("=")
        with self._told.open("w") as told:
            self._forks = subprocess.Popen(
                [sys.executable, "-c", _FORKS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                # Whether there is another line is asked of the pipe.
                bufsize=0,
                env=os.environ | {name: value, "TMPDIR": str(self.temporary)},
            )
        assert self._forks.stdout is not None
        if not self._forks.stdout.readline():
            raise RuntimeError(f"the compiler cannot be imported: {self._told.read_text()[-300:]}")
        return self

    def __exit__(self, *exception: object) -> None:
        self._forks.kill()
        self._forks.communicate()

    def start(self, drill: Drill) -> Run:
        """Start the command."""
        assert self._forks.stdin is not None
        self._forks.stdin.write(json.dumps(drill.arguments).encode() + b"\n")
        return Run(self._forks, self._told)

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
        """Command lines of what the commands have started."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == self._forks.pid:
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
    _save(path, nodes, weights, ("image", [1, 3, 16, 16]), ("scores", [1, 10]))


def write_product(path: Path) -> None:
    """rows (16, 64) -> one matrix product -> scores (16, 256): a job of tuning takes seconds."""
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype("float32")
    node = helper.make_node("MatMul", ["rows", "w"], ["scores"])
    weights = [numpy_helper.from_array(weight, "w")]
    _save(path, [node], weights, ("rows", [16, 64]), ("scores", [16, 256]))


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    source: tuple[str, list[int]],
    result: tuple[str, list[int]],
) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (source, result)]
    graph = helper.make_graph(nodes, "drill", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def drills(model: Path, product: Path, results: Path) -> list[Drill]:
    """The four commands; `results` gets their results, and what packing packs."""
    module, pruned = results / "module", results / "pruned.onnx"
    archive, log = results / "module.tar.zst", results / "log"
    # Bounded by trials: where time bounds a job, a busy machine leaves none for the search.
    tuned = ["--minutes", "5", "--trials", "8", "--threads", "1", "--log", str(log)]

    def records_are_whole() -> None:
        shelves = list(Store(log).shelves()) if log.exists() else []
        damaged = sum(shelf.damaged() for shelf in shelves)
        if damaged > 1:
            raise ValueError(f"{damaged} damaged lines")
        known = sum(len(own) for shelf in shelves for own in shelf.trials().values())
        if known > 8:
            raise ValueError(f"{known} trials of at most 8")
        lines = [line for path in log.rglob("trials.jsonl") for line in path.open()]
        if len(lines) > known + damaged:
            raise ValueError(f"{len(lines)} lines of {known} trials: some were measured twice")

    def loads() -> None:
        verify_files(module)
        with tinsmith.load(module, threads=1) as loaded:
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
        Drill(
            "tune",
            ["tune", str(product), *tuned],
            records_are_whole,
            lambda: shutil.rmtree(log, ignore_errors=True),
        ),
    ]


def run_to_the_end(ground: Ground, drill: Drill) -> str:
    """What was wrong with a run that nobody kills; empty if nothing."""
    run = ground.start(drill)
    if not run.wait(LIMIT_SECONDS):
        run.kill()
        return f"the command hung for {LIMIT_SECONDS} s"
    if run.status:
        return f"exit status {run.status}: {run.told()[-300:]}"
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
    drill.begin_anew()
    run = ground.start(drill)
    begin = time.monotonic()
    if writing:
        while not run.wait(0.005) and not ground.scratch():
            continue
    rest = max(0.05, outcome.seconds - (time.monotonic() - begin))
    ended = run.wait(chance.uniform(0, rest if writing else outcome.seconds))
    run.kill()
    outcome.kills += not ended
    outcome.too_late += ended
    outcome.while_writing += not ended and bool(ground.scratch())
    faults = [f"lives on: {line[:200]}" for line in ground.orphans()]
    faults += [f"after the kill: {wrong}" for wrong in [checked(drill)] if wrong]
    again = time.monotonic()
    faults += [f"run again: {wrong}" for wrong in [run_to_the_end(ground, drill)] if wrong]
    # A machine that others use, too, is now faster, now slower.
    outcome.seconds = 0.7 * outcome.seconds + 0.3 * (time.monotonic() - again)
    outcome.faults += faults
    for fault in faults:
        print(f"{drill.name}: {fault}", file=sys.stderr, flush=True)


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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as grounds:
        ground = grounds.enter_context(Ground(Path(folder)))
        model, product = Path(folder) / "drill.onnx", Path(folder) / "product.onnx"
        write_model(model)
        write_product(product)
        for drill in drills(model, product, ground.results):
            asked = options.only.split(",") if options.only else [drill.name]
            if drill.name not in asked and not (drill.name == "compile" and "pack" in asked):
                continue
            outcome = Outcome(drill.name, 0.0)
            for _ in range(2):  # the first run fills caches: the second tells the time
                drill.begin_anew()
                begin = time.monotonic()
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
