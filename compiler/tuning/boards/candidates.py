"""A batch of candidates for a board: built here, measured there, judged here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.module.manifest import digest_bytes
from tinsmith.compiler.tuning.batch import ROUNDS, Kernel, Outcome, build_batch, judge, tolerance_of
from tinsmith.compiler.tuning.boards.board import Findings, Order
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

LIMIT_SECONDS = 60.0
# Integers of more bits are counts or indices, and equal or wrong.
_CODES = ("int8", "uint8")


def build_for_board(
    kernel: Kernel, candidates: Sequence[Decisions], spec: TargetSpec, folder: Path
) -> dict[str, Any]:
    """Build a batch and write its inputs, in the empty `folder`; plain data for JSON."""
    batch = build_batch(kernel, candidates, spec, folder)
    return {
        "module": str(batch.path),
        "inputs": [str(path) for path in write_tensors(batch.arguments.arrays, folder)],
        "results": [dtype for _, dtype in batch.arguments.results],
        "places": batch.places,
        "threads": spec.cores,
        "build_seconds": batch.seconds,
    }


def write_tensors(arrays: Sequence[np.ndarray], folder: Path) -> list[Path]:
    """A file with the bytes of each array; equal ones share theirs."""
    paths = []
    for array in arrays:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        path = folder / f"{digest_bytes(content).blake3[:32]}.tensor"
        if not path.exists():
            path.write_bytes(content.data)
        paths.append(path)
    return paths


def order_for(built: Mapping[str, Any], seconds: float) -> Order:
    """What a board is to do with a batch that `build_for_board` has built."""
    return Order(
        modules=[Path(built["module"])],
        inputs=[Path(path) for path in built["inputs"]],
        threads=built["threads"],
        seconds=seconds,
        rounds=ROUNDS,
        group=len(built["results"]),
        limit_seconds=LIMIT_SECONDS,
    )


def judge_findings(
    built: Mapping[str, Any], findings: Findings
) -> tuple[float, tuple[Outcome, ...]]:
    """Seconds of the default, and the outcome of each candidate."""
    dtypes: list[str] = built["results"]
    deviations = findings.deviations[0]
    wrong = [
        "".join(map(_told, deviations[first : first + len(dtypes)], dtypes))
        for first in range(0, len(deviations), len(dtypes))
    ]
    return judge(built["places"], wrong, findings.times[0][:, 1:])


def _told(deviation: float, dtype: str) -> str:
    """How far off an output is; empty if it agrees."""
    is_number = "float" in dtype or dtype in _CODES
    if deviation <= (tolerance_of(dtype) if is_number else 0.0):
        return ""
    return f"off by {deviation:.1e} of the range"
