"""Times the kernels of several builds of one model, in the model, in a process of its own.

What a kernel finds in the caches is left there by its neighbours; a candidate
that wins among its like may lose in its place. One run of each build in turn,
step by step, tells for all kernels at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compiler.evaluate.inputs import random_inputs, signature_of
from compiler.module.base import Module
from compiler.module.loader import load

# As in `batch`: other load only ever adds time.
_QUANTILE = 0.25
_ROUNDS = (9, 200)
_LIMIT_SECONDS = 120.0


def kernel_seconds(
    paths: Sequence[Path], threads: int, seconds: float
) -> list[dict[str, float]] | None:
    """Of each module, the seconds of all calls of each kernel in one run, by its name.

    The modules must take the same inputs; about `seconds` are spent. None if they crash.
    """
    order = {"paths": [str(path) for path in paths], "threads": threads, "seconds": seconds}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "compiler.tuning.variants", json.dumps(order)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS + seconds,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(part or "." for part in sys.path)},
        )
    except subprocess.TimeoutExpired:
        return None
    lines = result.stdout.splitlines()
    return list(json.loads(lines[-1])) if result.returncode == 0 and lines else None


def main(order: Mapping[str, object]) -> None:
    """Print the answer to `kernel_seconds`."""
    paths, threads, seconds = order["paths"], order["threads"], order["seconds"]
    assert isinstance(paths, list) and isinstance(threads, int) and isinstance(seconds, float)
    modules = [load(path, threads=threads) for path in paths]
    golden = modules[0].golden()
    if golden is not None:
        inputs = list(golden.inputs)
    else:
        inputs = list(random_inputs(signature_of(modules[0].manifest.inputs), {}, 0).values())
    samples: list[list[list[float]]] = [[] for _ in modules]
    deadline = time.perf_counter() + seconds
    least, most = _ROUNDS
    for done in range(most):
        if done >= least and time.perf_counter() > deadline:
            break
        for module, found in zip(modules, samples, strict=True):
            # The other builds have weights of their own: this one's are brought back first.
            module.run(inputs)
            found.append([step.seconds for step in module.profile(inputs, 1)])
    totals = [_by_kernel(m, inputs, s) for m, s in zip(modules, samples, strict=True)]
    print(json.dumps(totals))


def _by_kernel(
    module: Module, inputs: list[np.ndarray], samples: list[list[float]]
) -> dict[str, float]:
    totals: dict[str, float] = {}
    names = [step.kernel for step in module.profile(inputs, 1)]
    for name, spent in zip(names, np.quantile(samples, _QUANTILE, axis=0), strict=True):
        totals[name] = totals.get(name, 0.0) + float(spent)
    return totals


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
