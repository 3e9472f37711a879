"""What stock MetaSchedule makes of a model in an hour, beside a tuning job of a few minutes.

TVM's own path: its ONNX front end, `zero_pipeline`, MetaSchedule's generic space with its
default builder, runner, cost model and scheduler of tasks. The search may crash, so that it runs
in a process that is started again on its database until it has had its trials; the same command
goes on where an earlier one was stopped.

    python benchmarks/metaschedule.py search DIR --trials 1900
    python benchmarks/metaschedule.py race DIR [--minutes 3] [--json FILE]

`race` tunes the model with Tinsmith without any record and times both, MetaSchedule's best both in
TVM's virtual machine and, as its kernels may do better there, in Tinsmith's runtime. Exit status
1 if Tinsmith is not ahead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from latency import find
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.s_tir import meta_schedule
from zoo import CACHE

from tinsmith import CompileConfig, TuneOptions, compile_to, tune
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.targets.registry import get_target
from tinsmith.targets.spec import TargetSpec

RECORDS = "database_tuning_record.json"
# So often in turn may a process die without having added a record.
_PATIENCE = 3
# Of a candidate. The default of 30 s is too short on a machine that has other work to do.
_LIMIT_SECONDS = 600


def fused(model: Path) -> tvm.IRModule:
    """The model as TVM's own pipeline for tuning gives it to MetaSchedule."""
    module = from_onnx(onnx.load(model), keep_params_in_input=False)
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.get_pipeline("zero"),
    ]
    return tvm.transform.Sequential(passes)(module)


def trials(folder: Path) -> int:
    """Records that there are in a database's folder."""
    path = folder / RECORDS
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def search_once(model: Path, folder: Path, spec: TargetSpec, most: int, batch: int) -> None:
    """Let MetaSchedule measure until the database has `most` records, `batch` at a time."""
    target = tvm.target.Target(spec.tvm_target_config())
    with target:
        meta_schedule.relax_integration.tune_relax(
            fused(model),
            {},
            target,
            str(folder),
            most - trials(folder),
            num_trials_per_iter=batch,
            builder=meta_schedule.builder.LocalBuilder(
                max_workers=spec.cores, timeout_sec=_LIMIT_SECONDS
            ),
            runner=meta_schedule.runner.LocalRunner(timeout_sec=_LIMIT_SECONDS),
        )


def search(model: Path, folder: Path, most: int, batch: int) -> None:
    """`search_once` in processes of its own, as many as it takes."""
    idle = 0
    begin = time.monotonic()
    while (before := trials(folder)) < most and idle < _PATIENCE:
        command = [sys.executable, __file__, "search-once", str(folder), "--model", str(model)]
        command += ["--trials", str(most), "--batch", str(batch)]
        code = subprocess.run(command, check=False).returncode
        idle = 0 if trials(folder) > before else idle + 1
        print(
            f"{trials(folder)} records, {time.monotonic() - begin:.0f} s, exit {code}", flush=True
        )


def best(model: Path, folder: Path, spec: TargetSpec) -> tvm.IRModule:
    """The model with the fastest schedule of each kernel that the database has."""
    target = tvm.target.Target(spec.tvm_target_config())
    with target:
        module = fused(model)
        return relax.transform.MetaScheduleApplyDatabase(str(folder))(module)


def in_virtual_machine(module: tvm.IRModule, spec: TargetSpec, runs: int) -> float:
    """Median milliseconds of a run in TVM's virtual machine."""
    machine = relax.VirtualMachine(
        tvm.compile(module, tvm.target.Target(spec.tvm_target_config())), tvm.cpu()
    )
    shape = [int(size) for size in module["main"].params[0].ty.shape]
    data = tvm.runtime.tensor(np.random.default_rng(0).random(shape, np.float32))
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        machine["main"](data)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)) * 1e3


def race(model: Path, folder: Path, spec: TargetSpec, minutes: float, runs: int) -> dict[str, Any]:
    """Milliseconds of MetaSchedule's best and of Tinsmith's, untuned and after a short job."""
    module = best(model, folder, spec)
    result: dict[str, Any] = {
        "metaschedule_records": trials(folder),
        "metaschedule_virtual_machine_ms": in_virtual_machine(module, spec, runs),
    }
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        report = tune(model, options=TuneOptions(minutes=minutes, log=log, fresh=True))
        built = {
            name: compile_to(
                model,
                Path(scratch) / name,
                config=CompileConfig(
                    log=log, tuned=name == "tuned", runner=False, static_library=False
                ),
            ).path
            for name in ("tuned", "untuned")
        }
        parameters = [parameter.name for parameter in module["main"].params]
        lowered = LoweredModel(module, spec, tuple(parameters), ("output",))
        stock = write_module(lowered, Path(scratch) / "stock", forms=("shared",)).path
        further = {
            "untuned": ("tinsmith", built["untuned"]),
            "stock": ("tinsmith", stock),
        }
        raced = bench(
            built["tuned"],
            None,
            runs,
            spec.cores,
            further=further,
        )
    medians = {timing.label: timing.median for timing in raced.timings}
    return result | {
        "metaschedule_ms": medians["stock"],
        "untuned_ms": medians["untuned"],
        "tuned_ms": raced.module.median,
        "seconds": report.seconds,
        "trials": report.trials,
    }


def main() -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("search", "search-once", "race"))
    parser.add_argument("folder", type=Path, help="MetaSchedule's database")
    parser.add_argument("--model", default="resnet18", help="a name, or a file")
    parser.add_argument("--trials", type=int, default=1900)
    parser.add_argument("--batch", type=int, default=64, help="trials of a kernel in turn")
    parser.add_argument("--minutes", type=float, default=3.0, help="for Tinsmith's job")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    known = find(arguments.cache) if not Path(arguments.model).is_file() else {}
    model = known[arguments.model][0] if known else Path(arguments.model)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    spec = get_target("native")
    if arguments.command == "search-once":
        search_once(model, arguments.folder, spec, arguments.trials, arguments.batch)
    elif arguments.command == "search":
        search(model, arguments.folder, arguments.trials, arguments.batch)
    else:
        found = race(model, arguments.folder, spec, arguments.minutes, arguments.runs)
        for name, value in found.items():
            print(f"{name:34}{value:10.3f}")
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        stock = min(found["metaschedule_ms"], found["metaschedule_virtual_machine_ms"])
        return 0 if found["tuned_ms"] < stock else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
