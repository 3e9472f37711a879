"""Measures candidates in a worker that may die; finds out which candidate is to blame."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.processes import child_environment
from tinsmith.compiler.tuning.batch import Kernel, Outcome
from tinsmith.compiler.tuning.worker import write_kernels
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

_END_SECONDS = 5.0
_WORKER = (sys.executable, "-m", "tinsmith.compiler.tuning.worker")


@dataclass(frozen=True)
class Limits:
    """What one batch may use beyond what the worker has: seconds, and bytes of address space."""

    seconds: float = 60.0
    memory_bytes: int = 6 * 2**30


@dataclass(frozen=True)
class Measured:
    """Outcomes of candidates in the order given, and the default's seconds beside each.

    None stands for a candidate that was not measured, because nothing is left to do so.
    """

    outcomes: tuple[Outcome | None, ...]
    default_seconds: tuple[float, ...]


@dataclass
class Ledger:
    """Where the time of measuring went."""

    build_seconds: float = 0.0
    run_seconds: float = 0.0
    # Of batches that gave no answer: building or running what failed.
    failed_seconds: float = 0.0
    batches: int = 0
    crashes: int = 0

    @property
    def seconds(self) -> float:
        """Spent on building and running."""
        return self.build_seconds + self.run_seconds + self.failed_seconds


class Measurer:
    """A worker for `kernels`, started anew when it dies. A context manager.

    `extensions` are modules that the worker imports, for templates that are not Tinsmith's own;
    files are put into a folder inside `scratch`.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        spec: TargetSpec,
        limits: Limits | None = None,
        extensions: Sequence[str] = (),
        scratch: Path | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._limits = limits or Limits()
        self._extensions = tuple(extensions)
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="tinsmith-tuning-", dir=scratch)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        write_kernels(Path(self._folder.name), list(kernels), spec)

    @property
    def lanes(self) -> int:
        """Batches are measured one after the other."""
        return 1

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def measure(self, kernel: int, candidates: Sequence[Decisions], seconds: float) -> Measured:
        """Outcomes of `candidates` of the kernel with that index, timed for about `seconds`.

        A batch that fails is halved until the candidate at fault is alone; that one has failed.
        Raises BuildError if the worker cannot be started, or the default alone fails.
        """
        answer = self.ask(kernel, candidates, seconds)
        if "failure" not in answer:
            outcomes = tuple(Outcome(**outcome) for outcome in answer["outcomes"])
            return Measured(outcomes, (float(answer["default_seconds"]),) * len(outcomes))
        if not candidates:
            raise BuildError(f"its default decisions fail: {answer['failure']}")
        if len(candidates) == 1:
            return Measured((Outcome(failure=str(answer["failure"])),), (0.0,))
        half = len(candidates) // 2
        first = self.measure(kernel, candidates[:half], seconds)
        second = self.measure(kernel, candidates[half:], seconds)
        return Measured(
            first.outcomes + second.outcomes, first.default_seconds + second.default_seconds
        )

    def default_seconds(self, kernel: int, seconds: float) -> float:
        """Seconds of the default alone; raises BuildError if it fails."""
        answer = self.ask(kernel, (), seconds)
        if "failure" in answer:
            raise BuildError(f"its default decisions fail: {answer['failure']}")
        return float(answer["default_seconds"])

    def close(self) -> None:
        """End the worker and delete its files."""
        self._stop()
        self._errors.close()
        self._folder.cleanup()

    def ask(
        self,
        kernel: int,
        candidates: Sequence[Decisions],
        seconds: float,
        build_in: Path | None = None,
    ) -> dict[str, Any]:
        """The worker's answer, or `{"failure": reason}`; given a folder, it only builds there."""
        process = self._process or self._start()
        begin = time.perf_counter()
        order = {
            "kernel": kernel,
            "candidates": [dict(decisions) for decisions in candidates],
            "seconds": seconds,
            "build_in": None if build_in is None else str(build_in),
            "limit_seconds": self._limits.seconds + 2 * seconds,
            "limit_bytes": self._limits.memory_bytes,
        }
        answer = self._exchange(process, order)
        ledger = self.ledger
        ledger.batches += 1
        if "failure" in answer:
            ledger.crashes += 1
            ledger.failed_seconds += time.perf_counter() - begin
        else:
            ledger.build_seconds += answer["build_seconds"]
            ledger.run_seconds += answer.get("run_seconds", 0.0)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [*_WORKER, self._folder.name, *self._extensions],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # A fork does not have the threads of numpy's own pool.
            env=child_environment(OPENBLAS_NUM_THREADS="1"),
        )
        answer = self._read(self._process)
        if answer is None:
            self._stop()
            raise BuildError(f"the worker that builds candidates does not start: {self._told()}")
        return self._process

    def _exchange(self, process: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        answer = self._read(process)
        if answer is None:
            # The worker itself has died, killed by the system for want of memory perhaps.
            self._stop()
            return {"failure": f"the worker died: {self._told()}"}
        return answer

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        return dict(json.loads(line)) if line.endswith("\n") else None

    def _stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _told(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:300] if lines else "no message"
