"""Try a folder of cases: models with expected outputs, models alone, and hostile files.

    python benchmarks/cases.py DIR [--only 'operators/resize*'] [--json FILE]

| part of DIR | what must happen |
|---|---|
| `operators/NAME/model.onnx`, `data.npz` | compiles; all inputs give the expected outputs |
| `models/NAME.onnx` | compiles: the command's own proof compares with ONNX Runtime |
| `hostile/NAME.onnx` | is refused in one clear line (exit 2), or compiles and proves itself right |

An archive `data.npz` holds `in0:NAME` for the inputs and `out0:INDEX` for the outputs of the first
set, `in1:NAME` and so on for the next. Every case runs in processes of its own, with a limit of
time, of memory, and for hostile files of processor time; a crash, a hang, exit code 70 or a message
of several lines is wrong whatever the case. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

PARTS = ("operators", "models", "hostile")
AGREE, REFUSED, WRONG = "agree", "refused", "wrong"

# Largest deviation relative to the largest finite value expected. Integers are exact, but for
# those of 8 bits, which are codes of numbers: one in fifty may round to its neighbour.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
NEIGHBOURING_CODES = 0.02

# What a message says that tells about our insides instead of the user's file: no clear refusal.
UNCLEAR = re.compile(r"pass \w+ failed|Check failed|please report|show_meta|object at 0x|to Expr")
LONGEST_MESSAGE = 600

USER_CAN_MEND = 2
GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Of one process: seconds of wall time and of processor time, bytes of address space."""

    seconds: float
    processor_seconds: float
    address_space: int
    resident: int


@dataclass(frozen=True)
class Ended:
    """How a process ended. `code` is None if it was killed for the time that it took."""

    code: int | None
    output: str
    errors: str
    processor_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How one case fared; `seconds` is the processor time of all its processes."""

    case: str
    verdict: str
    detail: str
    seconds: float


def find_cases(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """The cases under `folder` as names (`operators/convolution`) and model files."""
    found = [
        (f"operators/{path.parent.name}", path)
        for path in sorted(folder.glob("operators/*/model.onnx"))
    ]
    for part in PARTS[1:]:
        files = sorted((folder / part).glob("*.onnx"))
        found.extend((f"{part}/{path.stem}", path) for path in files)
    wanted = (pattern, f"*/{pattern}")
    return [case for case in found if any(fnmatch.fnmatch(case[0], glob) for glob in wanted)]


def run_limited(command: Sequence[str], limits: Limits) -> Ended:
    """Run `command`; it and its children are killed when a limit is passed."""

    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "TVM_NUM_THREADS": "1", "COLUMNS": "10000"},
        )
        whole = int(limits.processor_seconds) + 1
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (whole, whole + 5))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limits.address_space,) * 2)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        deadline = time.monotonic() + limits.seconds
        timed_out = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline and not timed_out:
                timed_out = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        return Ended(
            None if timed_out or process.returncode == -signal.SIGXCPU else process.returncode,
            output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024,
        )


def try_case(case: str, model: Path, limits: Limits) -> Outcome:
    """Compile one case as a user would, run it on its data if it has some, and judge."""
    with tempfile.TemporaryDirectory(prefix="case-") as folder:
        module = Path(folder) / "module"
        compiler = [sys.executable, "-m", "tinsmith.compiler.cli", "compile", str(model)]
        compiled = run_limited([*compiler, "-o", str(module)], limits)
        verdict, detail = judge_compilation(compiled, limits)
        seconds = compiled.processor_seconds
        data = model.with_name("data.npz")
        if verdict == AGREE and case.startswith("operators/") and data.is_file():
            ran = run_limited([sys.executable, __file__, "--run", str(module), str(data)], limits)
            seconds += ran.processor_seconds
            if ran.code == 0:
                detail = ran.output.strip()
                verdict = WRONG if detail else AGREE
            else:
                verdict, detail = WRONG, f"running the module: {describe_end(ran)}"
    return Outcome(case, verdict, detail, seconds)


def judge_compilation(ended: Ended, limits: Limits) -> tuple[str, str]:
    """The verdict on a compilation alone, and the line that says why."""
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    message = lines[-1].removeprefix("tinsmith: error: ") if lines else ""
    if ended.peak_bytes > limits.resident:
        return WRONG, f"took {ended.peak_bytes / GIBIBYTE:.1f} GiB of memory; {message}"
    if ended.code == 0:
        return AGREE, ""
    if ended.code != USER_CAN_MEND:
        return WRONG, describe_end(ended)
    told = [line for line in lines if not line.startswith(("note: ", "tinsmith: error: "))]
    if told or not message:
        return WRONG, f"refused, but not in one line: {ended.errors.strip()[:300]!r}"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in message):
        return WRONG, f"control characters in the message: {message!r}"
    if UNCLEAR.search(message) or len(message) > LONGEST_MESSAGE:
        return WRONG, f"refused, but not clearly: {message[:LONGEST_MESSAGE]}"
    return REFUSED, message


def describe_end(ended: Ended) -> str:
    """Why a process that failed did so."""
    last = next((line for line in reversed(ended.errors.splitlines()) if line.strip()), "")
    if ended.code is None:
        return f"too slow: {ended.processor_seconds:.0f} s of processor time; {last}"
    if ended.code < 0:
        return f"crash: {signal.Signals(-ended.code).name}"
    return f"exit {ended.code}: {last.removeprefix('tinsmith: error: ')}"


def run_on_data(module_folder: Path, data: Path) -> str:
    """What is wrong with the outputs for the first set of `data` that disagrees, or nothing."""
    from tinsmith import load

    with np.load(data) as archive, load(module_folder, threads=2) as module:
        arrays = {name: archive[name] for name in archive.files}
        sets = sorted({int(key.split(":")[0][2:]) for key in arrays if key.startswith("in")} or {0})
        for number in sets:
            prefix = f"in{number}:"
            given = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            inputs = [np.ascontiguousarray(given[tensor.name]) for tensor in module.manifest.inputs]
            # Zero-dimensional arrays come back from ascontiguousarray with one dimension.
            shaped = [
                array.reshape(given[tensor.name].shape)
                for array, tensor in zip(inputs, module.manifest.inputs, strict=True)
            ]
            results = module.run(shaped)
            for index, result in enumerate(results):
                expected = arrays.get(f"out{number}:{index}")
                wrong = "" if expected is None else difference(result, expected)
                if wrong:
                    return f"set {number}, output {index}: {wrong}"
    return ""


def difference(actual: np.ndarray, expected: np.ndarray) -> str:
    """How `actual` differs from `expected`, or nothing if they agree."""
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind == "V" and expected.dtype.itemsize == 2:
        expected = expected.view(ml_dtypes.bfloat16)  # numpy's archives forget its name
    if actual.dtype != expected.dtype:
        return f"dtype {actual.dtype} instead of {expected.dtype}"
    if expected.size == 0:
        return ""
    if expected.dtype.kind in "biu":
        unequal = actual != expected
        if expected.dtype.itemsize == 1 and expected.dtype.kind != "b":
            steps = np.abs(actual.astype(int) - expected.astype(int))
            if steps.max() <= 1 and unequal.mean() <= NEIGHBOURING_CODES:
                return ""
        return f"{unequal.sum()} of {expected.size} values differ" if unequal.any() else ""
    first, second = actual.astype(np.float64), expected.astype(np.float64)
    special = ~np.isfinite(second)
    if not np.array_equal(first[special], second[special], equal_nan=True):
        return "NaNs or infinities stand in other places"
    first, second = first[~special], second[~special]
    if not np.isfinite(first).all():
        return "NaNs or infinities where numbers are expected"
    scale = max(float(np.abs(second).max(initial=0)), 1e-6)
    deviation = float(np.abs(first - second).max(initial=0)) / scale
    allowed = TOLERANCES.get(str(expected.dtype), 1e-3)
    return f"off by {deviation:.1e} of the largest value" if deviation > allowed else ""


def print_report(outcomes: Sequence[Outcome]) -> None:
    """The table, and one line for each case that does not simply agree."""
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False)
    table = Table(header_style="bold")
    for column in ("cases", "tried", "agree", "refused clearly", "wrong"):
        table.add_column(column, justify="left" if column == "cases" else "right")
    for part in (*PARTS, "all"):
        mine = [o for o in outcomes if part == "all" or o.case.startswith(f"{part}/")]
        counts = Counter(outcome.verdict for outcome in mine)
        if mine:
            figures = (len(mine), counts[AGREE], counts[REFUSED], counts[WRONG])
            table.add_row(part, *map(str, figures))
    console.print(table)
    for outcome in outcomes:
        if outcome.verdict != AGREE:
            print(f"{outcome.verdict:8} {outcome.case}: {outcome.detail}")
        elif outcome.case.startswith("hostile/"):
            print(f"compiled {outcome.case}: and agrees with the reference")


def try_all(
    cases: Sequence[tuple[str, Path]],
    jobs: int,
    limits_of: Callable[[str, Path], Limits],
) -> list[Outcome]:
    """All outcomes in the order of `cases`, with a line on standard error as each is there."""

    def one(case: tuple[str, Path]) -> Outcome:
        return try_case(*case, limits_of(*case))

    outcomes = []
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(one, cases):
            outcomes.append(outcome)
            left = (time.monotonic() - start) / len(outcomes) * (len(cases) - len(outcomes))
            progress = f"{len(outcomes)}/{len(cases)}, {left:.0f} s left"
            print(f"{progress}: {outcome.case} {outcome.verdict}", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Print the report; exit status 1 if anything is wrong, 2 if there is no case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases to try, by name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all outcomes there")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--seconds", type=float, default=300.0, help="wall time of one process")
    parser.add_argument("--hostile-seconds", type=float, default=10.0, help="processor time")
    options = parser.parse_args()
    cases = find_cases(options.folder, options.only)
    if not cases:
        print(f"{options.folder}: no case is named {options.only!r}", file=sys.stderr)
        return 2

    def limits_of(case: str, model: Path) -> Limits:
        if not case.startswith("hostile/"):
            return Limits(options.seconds, options.seconds, 16 * GIBIBYTE, 8 * GIBIBYTE)
        resident = max(GIBIBYTE, 20 * model.stat().st_size)
        return Limits(options.seconds, options.hostile_seconds, 16 * GIBIBYTE, resident)

    outcomes = try_all(cases, options.jobs, limits_of)
    print_report(outcomes)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.verdict == WRONG for outcome in outcomes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(run_on_data(Path(sys.argv[2]), Path(sys.argv[3])))
        sys.exit(0)
    sys.exit(main())
