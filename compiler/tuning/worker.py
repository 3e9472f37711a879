"""The process that runs candidates, so that no other has to: the child side of `measure`.

    python -m tinsmith.compiler.tuning.worker FOLDER [MODULE ...]

It imports what a build needs, reads the kernels that `measure` has put into
FOLDER, and then runs each batch in a fork of itself: whatever a candidate does,
it does to the fork. Orders come as JSON lines on standard input, each is
answered by one on standard output; one with a folder `build_in` is for a board, and only built.
When standard input ends, also while a batch
runs, the batch is killed and the worker ends: it does not outlive its job.
Each MODULE is imported first; it may bring templates of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.processes import describe_exit
from tinsmith.compiler.tuning.batch import Kernel, run_batch
from tinsmith.compiler.tuning.boards.candidates import build_for_board
from tinsmith.targets.spec import TargetSpec

_LONGEST_REASON = 300


def write_kernels(folder: Path, kernels: list[Kernel], spec: TargetSpec) -> None:
    """Put what a worker needs into `folder`."""
    module = tvm.IRModule(
        {
            f"kernel{i}": kernel.function.with_attr("global_symbol", f"kernel{i}")
            for i, kernel in enumerate(kernels)
        }
    )
    (folder / "kernels.json").write_text(tvm.ir.save_json(module))
    described = [(k.outputs, k.resident_bytes, sorted(k.constants)) for k in kernels]
    (folder / "rest.pickle").write_bytes(pickle.dumps((spec, described)))
    for i, kernel in enumerate(kernels):
        for position, array in kernel.constants.items():
            np.save(folder / f"{i}_{position}.npy", array)


def _read_kernel(folder: Path, module: tvm.IRModule, described: list[Any], index: int) -> Kernel:
    outputs, resident_bytes, positions = described[index]
    constants = {p: np.load(folder / f"{index}_{p}.npy", allow_pickle=False) for p in positions}
    function = module[f"kernel{index}"].without_attr("global_symbol")
    return Kernel(function, constants, outputs, resident_bytes)


def main(folder: Path) -> None:
    """Answer orders until standard input ends."""
    spec, described = pickle.loads((folder / "rest.pickle").read_bytes())
    module = tvm.ir.load_json((folder / "kernels.json").read_text())
    # Libraries may print to standard output; only answers may reach the job.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write('{"ready": true}\n')
    answers.flush()
    # Unbuffered, because the end of the orders is watched for while a batch runs.
    while line := _read_line():
        order = json.loads(line)

        def batch(order: dict[str, Any] = order) -> dict[str, Any]:
            kernel = _read_kernel(folder, module, described, order["kernel"])
            if order["build_in"]:
                return build_for_board(kernel, order["candidates"], spec, Path(order["build_in"]))
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                result = run_batch(
                    kernel, order["candidates"], spec, Path(scratch), order["seconds"]
                )
            return dataclasses.asdict(result)

        answer = _in_fork(batch, order["limit_seconds"], order["limit_bytes"])
        for leftover in folder.glob("tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def _in_fork(batch: Any, limit_seconds: float, limit_bytes: int) -> dict[str, Any]:
    """What `batch` returns, or `{"failure": reason}` for whatever else becomes of it."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _run_child(batch, sender, limit_seconds, limit_bytes)
    os.close(sender)
    content, expired = _collect(receiver, limit_seconds)
    os.close(receiver)
    # Whatever the batch has started is in its group.
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    _, status = os.waitpid(child, 0)
    if content is None:
        sys.exit(0)
    if expired:
        return {"failure": f"took longer than {limit_seconds:.0f} s"}
    try:
        return dict(json.loads(content))
    except ValueError:
        return {"failure": describe_exit(os.waitstatus_to_exitcode(status))}


def _run_child(batch: Any, sender: int, limit_seconds: float, limit_bytes: int) -> None:
    code = 1
    try:
        os.setsid()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit_bytes,) * 2)
        # Both cores count: a hanging kernel keeps all threads busy.
        processor = int(limit_seconds * (os.cpu_count() or 1)) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (processor, processor))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            answer = batch()
        except MemoryError:
            answer = {"failure": "ran out of memory"}
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[-1]}"
            answer = {"failure": reason[:_LONGEST_REASON]}
        with os.fdopen(sender, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        code = 0
    finally:
        # No destructors: they belong to the worker, of which this is a copy.
        os._exit(code)


def _collect(receiver: int, limit_seconds: float) -> tuple[bytes | None, bool]:
    """What comes through the pipe, and whether time ran out; None if the orders have ended."""
    content = b""
    deadline = time.monotonic() + limit_seconds
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                # The job waits for an answer, so that only the end can come meanwhile.
                part = os.read(int(key.fd), 1 << 16)
                if key.fd == 0:
                    return None, False
                if not part:
                    return content, False
                content += part
    return content, True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    main(Path(sys.argv[1]))
