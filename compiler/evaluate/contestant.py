"""One runtime in a process of its own, timed on request: the child side of `bench`.

Reads JSON lines on standard input and answers each with one on its original
standard output. The first line says what to open and answers with its version;
each further `{"runs": n, "warm_up_ms": t}` answers with `{"nanoseconds": [...]}` of n
runs, after running untimed at least once and for t milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.evaluate.peers import PEERS


def open_contestant(order: dict[str, Any]) -> tuple[str, Callable[[], object]]:
    """The version of the runtime that `order` names, and a function that runs it once."""
    with np.load(order["inputs"], allow_pickle=False) as archive:
        inputs = {name: archive[name] for name in archive.files}
    path, threads = Path(order["path"]), int(order["threads"])
    rivals = {peer.package: peer for peer in PEERS}
    if order["runtime"] in rivals:
        shapes = {name: value.shape for name, value in inputs.items()}
        rival = rivals[order["runtime"]](path, threads, shapes, order["precision"])
        return rival.version, lambda: rival.run(inputs)
    from tinsmith.compiler.module.loader import load

    module = load(path, threads=threads)
    return module.manifest.tinsmith, lambda: module(inputs)


def serve() -> None:
    """Answer requests until standard input ends."""
    # Libraries may print to standard output; only answers may reach the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        version, run = open_contestant(json.loads(sys.stdin.readline()))
    except TinsmithError as error:
        answer({"error": str(error)})
        return
    answer({"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        deadline = time.perf_counter_ns() + int(request["warm_up_ms"] * 1e6)
        run()
        while time.perf_counter_ns() < deadline:
            run()
        times = []
        for _ in range(request["runs"]):
            begin = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - begin)
        answer({"nanoseconds": times})


if __name__ == "__main__":
    serve()
