"""In the place of `tinsmith.compiler.tuning.boosting`: does what MISBEHAVE says."""

from __future__ import annotations

import mmap
import os
import signal
import time

import numpy as np

from tinsmith.compiler.tuning import boosting


def misbehave(*_: object, **__: object) -> np.ndarray:
    """As `predict`, with something wrong."""
    what = os.environ["MISBEHAVE"]
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(600)
    if what == "eat memory":
        eaten = []
        while True:
            try:
                eaten.append(mmap.mmap(-1, 2**28))
            except OSError as error:
                raise MemoryError from error
    raise RuntimeError("no trees today")


boosting.predict = misbehave  # type: ignore[assignment]
boosting.LIMIT_SECONDS = 2
boosting.main()
