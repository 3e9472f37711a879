"""Runs builds of a model in a process of its own: times their kernels, checks their results.

What a kernel finds in the caches is left there by its neighbours; a candidate
that wins among its like may lose in its place. One run of each build in turn,
step by step, tells for all kernels at once. And what a build does, it does to
that process: it may crash or hang.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.evaluate.compare import compare_all
from tinsmith.compiler.evaluate.inputs import random_inputs, signature_of
from tinsmith.compiler.module.base import Module, StepTime
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.processes import child_environment, ending_with_this

# As in `batch`: other load only ever adds time.
_QUANTILE = 0.25
_ROUNDS = (9, 200)
_WARM_UP_SECONDS = 0.5
_LIMIT_SECONDS = 120.0


def step_seconds(
    paths: Sequence[Path], threads: int, seconds: float
) -> list[list[StepTime]] | None:
    """The steps of each module with their seconds in one run, in order of execution.

    The modules must take the same inputs; about `seconds` are spent. None if they crash.
    """
    answer = _asked("times", paths, threads, seconds)
    if answer is None:
        return None
    return [[StepTime(i, *step) for i, step in enumerate(steps)] for steps in answer]


def agrees(path: Path, threads: int) -> bool:
    """Whether a module computes its golden vectors; True if it has none, False if it crashes."""
    return bool(_asked("check", [path], threads, 0.0))


def main(order: dict[str, Any]) -> None:
    """Print the answer to what `_asked` asks."""
    modules = [load(path, threads=order["threads"]) for path in order["paths"]]
    answer = _check(modules[0]) if order["what"] == "check" else _times(modules, order["seconds"])
    print(json.dumps(answer))


def _asked(what: str, paths: Sequence[Path], threads: int, seconds: float) -> Any:
    """The answer of a process of its own; None if it crashes or takes too long."""
    order = {
        "what": what,
        "paths": [str(path) for path in paths],
        "threads": threads,
        "seconds": seconds,
    }
    try:
        result = subprocess.run(
            ending_with_this(
                [sys.executable, "-m", "tinsmith.compiler.tuning.variants", json.dumps(order)]
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS + seconds,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        return None
    lines = result.stdout.splitlines()
    return json.loads(lines[-1]) if result.returncode == 0 and lines else None


def _check(module: Module) -> bool:
    golden = module.golden()
    if golden is None:
        return True
    names = [tensor.name for tensor in module.manifest.outputs]
    actual = dict(zip(names, module.run(golden.inputs), strict=True))
    expected = dict(zip(names, golden.outputs, strict=True))
    return all(one.agrees for one in compare_all(actual, expected, golden.tolerance))


def _times(modules: Sequence[Module], seconds: float) -> list[list[tuple[str, float]]]:
    golden = modules[0].golden()
    if golden is not None:
        inputs = list(golden.inputs)
    else:
        inputs = list(random_inputs(signature_of(modules[0].manifest.inputs), {}, 0).values())
    # One for all rounds: the pages of a new one are mapped at the first touch, which would be
    # counted as time of the first kernels.
    contexts = [module.context() for module in modules]
    # Clocks and caches settle.
    warm = time.perf_counter() + _WARM_UP_SECONDS
    names = [[step.kernel for step in context.profile(inputs, 1)] for context in contexts]
    while time.perf_counter() < warm:
        for context in contexts:
            context.run(inputs)
    samples: list[list[list[float]]] = [[] for _ in modules]
    deadline = time.perf_counter() + seconds
    least, most = _ROUNDS
    for done in range(most):
        if done >= least and time.perf_counter() > deadline:
            break
        for context, found in zip(contexts, samples, strict=True):
            # The other builds have weights of their own: this one's are brought back first.
            context.run(inputs)
            found.append([step.seconds for step in context.profile(inputs, 1)])
    totals = [np.quantile(found, _QUANTILE, axis=0).tolist() for found in samples]
    return [list(zip(*pair, strict=True)) for pair in zip(names, totals, strict=True)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
