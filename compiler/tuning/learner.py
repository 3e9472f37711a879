"""Keeps the process that learns: it may crash or hang, the search goes on without it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType

import numpy as np

from tinsmith.compiler.processes import child_environment, describe_exit, ending_with_this
from tinsmith.compiler.tuning.boosting import LIMIT_SECONDS, read_arrays, write_arrays

# What the child runs.
MODULE = "tinsmith.compiler.tuning.boosting"
# After so many failures it is not asked again.
_MOST_FAILURES = 2


class Learner:
    """A process that predicts, started when it is first asked and anew when it has died.

    A context manager. `note` tells how often it failed and why; it is empty if it never did.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._failures = self._unanswered = 0
        self._reason = ""

    def __enter__(self) -> Learner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._errors.close()

    @property
    def note(self) -> str:
        """For the report of a job."""
        if not self._unanswered:
            return ""
        told = f"batches that were proposed at random: {self._unanswered}"
        return f"{told}, because the cost model {self._reason}"

    def predict(
        self, features: np.ndarray, targets: np.ndarray, wanted: np.ndarray, seed: int
    ) -> np.ndarray | None:
        """As `boosting.predict`; None if the process fails, now or too often before."""
        predicted = None
        if self._failures < _MOST_FAILURES:
            predicted = self._asked(features, targets, wanted, seed)
        if predicted is None:
            self._unanswered += 1
        return predicted

    def _asked(
        self, features: np.ndarray, targets: np.ndarray, wanted: np.ndarray, seed: int
    ) -> np.ndarray | None:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        order = {"features": features, "targets": targets, "wanted": wanted}
        with suppress(BrokenPipeError):
            write_arrays(process.stdin, **order, seed=np.array(seed))
        answer = read_arrays(process.stdout)
        if answer is None:
            self._failures += 1
            self._reason = self._ended(process)
            self._stop()
            return None
        return answer["predicted"]

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            ending_with_this([sys.executable, "-m", MODULE]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(),
        )
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """What a process without an answer died of."""
        code = process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {LIMIT_SECONDS} s"
        self._errors.seek(0)
        told = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"failed with {told[-1][:300]}" if code > 0 and told else describe_exit(code)

    def _stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None and process.stdout is not None
        process.kill()
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
