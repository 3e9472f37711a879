"""`tinsmith-runtime`: run, verify, bench and inspect modules where the compiler is not installed.

It needs what running needs, and nothing for the sake of the command line. `--json` prints one
document; errors are one line on standard error. Exit codes are those of `tinsmith`: 0 success,
1 a verification failed, 2 something the user can mend.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import TinsmithError, VerificationError
from tinsmith.compiler.evaluate.kernels import inspect, largest_inputs
from tinsmith.compiler.evaluate.verify import verify
from tinsmith.compiler.module.array_files import read_arrays, write_arrays
from tinsmith.compiler.module.loader import Module, load
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.plain_text import plain_line
from tinsmith.targets.machine_at_hand import usable_cores

_WARM_UP_SECONDS = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (by default the process's) say; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        document, lines = options.command(options)
    except TinsmithError as error:
        return _failed(error, type(error).__name__, error.exit_code, options.json)
    except OSError as error:
        return _failed(error, type(error).__name__, 2, options.json)
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(map(plain_line, lines)))
    return VerificationError.exit_code if document.get("agrees") is False else 0


def _failed(error: Exception, kind: str, code: int, as_json: bool) -> int:
    line = plain_line(str(error))
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": line, "exit_code": code}}))
    print(f"tinsmith-runtime: error: {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinsmith-runtime", description="Runs modules that Tinsmith has compiled."
    )
    parser.add_argument("--version", action="version", version=tinsmith_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, told: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=told, description=told)
        added.set_defaults(command=command)
        added.add_argument("module", type=Path, metavar="MODULE", help="a folder, or an archive")
        added.add_argument("--threads", type=int, default=0, help="0 (default): all processors")
        added.add_argument("--json", action="store_true", help="print one JSON document")
        return added

    run = add("run", _run, "Run a module on numpy arrays.")
    run.add_argument("--input", "-i", action="append", default=[], metavar="NAME=FILE.npy")
    run.add_argument("--output", "-o", type=Path, metavar="FILE.npz", help="write the outputs")
    add("verify", _verify, "Compare a module with its golden vectors; 1 if it disagrees.")
    bench = add("bench", _bench, "Time runs of a module on its golden input.")
    bench.add_argument("--runs", type=int, default=50)
    described = add("inspect", _inspect, "Show a module's kernels and the time each takes.")
    described.add_argument("--runs", type=int, default=10)
    return parser


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    with load(options.module, threads=options.threads) as module:
        arrays = read_arrays(options.input, [tensor.name for tensor in module.inputs])
        outputs = dict(
            zip(
                (tensor.name for tensor in module.outputs),
                module.run(arrays, strict=True),  # files are what they say
                strict=True,
            )
        )
    if options.output is not None:
        write_arrays(options.output, outputs)
    described = {
        name: {
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "minimum": float(value.min()) if value.size else None,
            "maximum": float(value.max()) if value.size else None,
        }
        for name, value in outputs.items()
    }
    written = None if options.output is None else str(options.output)
    lines = [
        f"{name}: {one['dtype']} {one['shape']}, from {one['minimum']} to {one['maximum']}"
        for name, one in described.items()
    ]
    return {"outputs": described, "written": written}, lines


def _verify(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    report = verify(options.module, threads=options.threads)
    lines = [
        f"{check.inputs}: {one.name} "
        f"{'agrees' if one.agrees else 'DOES NOT AGREE'} with what is {check.reference} "
        f"({one.told}, {one.tolerance:.0e} allowed)"
        for check in report.checks
        for one in check.differences
    ]
    return report.to_dict(), lines


def _bench(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    with load(options.module, threads=options.threads) as module:
        milliseconds = _timed(module, max(options.runs, 1))
        threads = module.threads
    found = {
        "threads": threads,
        "runs": len(milliseconds),
        "median_ms": statistics.median(milliseconds),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "best_ms": min(milliseconds),
    }
    line = (
        f"median {found['median_ms']:.3f} ms, p95 {found['p95_ms']:.3f}, best "
        f"{found['best_ms']:.3f}; {found['runs']} runs, {threads} threads"
    )
    return found, [line]


def _timed(module: Module, runs: int) -> list[float]:
    inputs = largest_inputs(module)
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    module.run(inputs)
    while time.perf_counter() < deadline:
        module.run(inputs)
    milliseconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        module.run(inputs)
        milliseconds.append((time.perf_counter() - begin) * 1e3)
    return milliseconds


def _inspect(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    report = inspect(options.module, max(options.runs, 1), options.threads or usable_cores())
    rows = [
        f"{row.seconds * 1e6:10.1f} us {row.share_of_time:6.1%}  {row.name} x{row.calls}, "
        f"{row.template} {row.arithmetic}".rstrip()
        + (f" ({row.nodes[-1]})" if row.nodes else "")
        for row in report.rows
    ]
    return report.to_dict(), [*report.header(), *rows, *report.footer()]
