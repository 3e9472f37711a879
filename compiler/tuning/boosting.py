"""The process that learns, so that no other has to: the child side of `learner`.

    python -m tinsmith.compiler.tuning.boosting

Gradient-boosted trees (Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016)
are native code. Each order on standard input is learnt from and answered anew on standard output,
so that nothing is lost with the process. One that takes too long kills it, also when the job is
not there any more; it ends with standard input.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
from pathlib import Path
from typing import IO

import numpy as np

_ROUNDS = 60
# What the process may use beyond what it has when it starts, and the time of one order.
_LIMIT_BYTES = 3 * 2**30
LIMIT_SECONDS = 60
_LENGTH = struct.Struct("<Q")


def predict(features: np.ndarray, targets: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Learn `targets` (samples) of `features` (samples, columns); the values of `wanted`'s rows.

    All are float32.
    """
    import xgboost

    options = {
        "max_depth": 6,
        "eta": 0.2,
        "min_child_weight": 1.0,
        "subsample": 0.9,
        "nthread": 1,
        "seed": seed,
        "verbosity": 0,
    }
    data = xgboost.DMatrix(features, targets, nthread=1)
    booster = xgboost.train(options, data, num_boost_round=_ROUNDS)
    return np.asarray(booster.predict(xgboost.DMatrix(wanted, nthread=1)), np.float32)


def write_arrays(stream: IO[bytes], **arrays: np.ndarray) -> None:
    """Send named arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    stream.write(_LENGTH.pack(content.tell()) + content.getvalue())
    stream.flush()


def read_arrays(stream: IO[bytes]) -> dict[str, np.ndarray] | None:
    """What `write_arrays` has sent; None if the other side has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def main() -> None:
    """Answer orders until standard input ends."""
    # The job is told of an interruption, and ends the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries may print to standard output; only answers may reach the job.
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (order := read_arrays(orders)) is not None:
        signal.alarm(LIMIT_SECONDS)
        seed = int(order.pop("seed"))
        write_arrays(answers, predicted=predict(**order, seed=seed))
        signal.alarm(0)


if __name__ == "__main__":
    main()
