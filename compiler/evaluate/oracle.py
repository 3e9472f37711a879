"""Other implementations of ONNX in a process of their own: the child's side.

An integer divided by zero ends a process, and so do some faults of other runtimes; here they
end one that can be spared. Answers requests on the socket whose number is the first argument,
until it is closed or nothing was asked for a while.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tinsmith.compiler.errors import ModelError, TinsmithError
from tinsmith.compiler.evaluate.peers import OnnxRuntime

ONNX_RUNTIME = "ONNX Runtime"
UNOPTIMISED = "ONNX Runtime without optimisation"
EVALUATOR = "onnx reference evaluator"

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Arrays], dict[str, np.ndarray]]
# Identity of a model; its bytes, None if they were sent before; who is asked; threads; inputs.
Request = tuple[str, bytes | None, str, int, dict[str, np.ndarray]]
# The outputs by name, or a line that says why there are none.
Answer = dict[str, np.ndarray] | str

# A process that nobody asks anything frees its memory by ending.
_PATIENCE_SECONDS = 30


def open_runner(who: str, content: bytes, threads: int) -> Runner:
    """A function that runs the model in `content`; raises what the runtime does if it refuses."""
    if who != EVALUATOR:
        optimised = who == ONNX_RUNTIME
        try:
            return OnnxRuntime(content, threads, {}, optimised=optimised, exact=True).run
        except ModelError:
            # It cannot make weights that share a zero point unsigned.
            return OnnxRuntime(content, threads, {}, optimised=optimised).run
    import onnx.version_converter

    from tinsmith.compiler.module.onnx_loop import reference_evaluator

    model = onnx.load_from_string(content)
    try:
        evaluator = reference_evaluator(model)
    except RuntimeError:
        # It has QuantizeLinear and its like in newer versions only.
        evaluator = reference_evaluator(onnx.version_converter.convert_version(model, 21))
    names = list(evaluator.output_names)

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            results = evaluator.run(None, dict(inputs))
        return dict(zip(names, map(np.asarray, results), strict=True))

    return run


def serve(connection: Any) -> None:
    """Answer requests until the other side is gone or silent for long."""
    contents: dict[str, bytes] = {}
    runners: dict[tuple[str, str], Runner] = {}
    while connection.poll(_PATIENCE_SECONDS):
        identity, content, who, threads, inputs = connection.recv()
        if content is not None:
            contents, runners = {identity: content}, {}
        try:
            if (identity, who) not in runners:
                runners[identity, who] = open_runner(who, contents[identity], threads)
            answer: Answer = runners[identity, who](inputs)
        except TinsmithError as error:
            answer = str(error)
        except Exception as error:  # whatever another runtime throws
            lines = str(error).strip().splitlines()
            answer = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        connection.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    # What dies of a signal here is expected to, and leaves no memory image behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # The parent closes its side, or is gone.
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))
