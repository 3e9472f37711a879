"""Where candidates and whole models run: on this machine, or on boards that implement the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.evaluate.roofline import cpu_name
from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.tuning import variants
from tinsmith.compiler.tuning.batch import Kernel
from tinsmith.compiler.tuning.measure import Ledger, Measured, Measurer
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

# How often both contestants of a race start anew: where their memory lies decides by several
# percent, once for all runs of a process. Of the medians of all starts the least counts.
STARTS = 3
RUNS = 100


def starts(seconds: float) -> Iterator[None]:
    """The starts of a race: one, and further ones as long as another fits into `seconds`."""
    begin = time.monotonic()
    for done in range(STARTS):
        passed = time.monotonic() - begin
        if done and passed + passed / done > seconds:
            return
        yield


class NoDeviceError(TargetError):
    """Nothing is left to measure on; what was measured is in the log."""


class BatchMeasurer(Protocol):
    """Measures candidates of given kernels; a context manager.

    `lanes` is how many batches are worth being measured at the same time, at least one.
    """

    ledger: Ledger

    @property
    def lanes(self) -> int: ...

    def measure(self, kernel: int, candidates: Sequence[Decisions], seconds: float) -> Measured:
        """As `Measurer.measure`; raises NoDeviceError if there is no device to begin with."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Runner(Protocol):
    """A place to measure. Methods raise NoDeviceError when there is none any more."""

    processor: str
    notes: list[str]

    def measurer(
        self, kernels: Sequence[Kernel], extensions: Sequence[str], scratch: Path | None
    ) -> BatchMeasurer:
        """What measures candidates of `kernels`; the others as for `Measurer`."""

    def step_seconds(self, paths: Sequence[Path], seconds: float) -> list[list[StepTime]] | None:
        """As `variants.step_seconds`."""

    def agrees(self, path: Path) -> bool:
        """As `variants.agrees`."""

    def race(self, before: Path, after: Path, seconds: float) -> tuple[float, float]:
        """Milliseconds of a run of either module, taking turns.

        They start once, and up to `STARTS` times as long as that fits into `seconds`.
        """


class LocalRunner:
    """This machine."""

    def __init__(self, spec: TargetSpec, threads: int) -> None:
        self.processor = cpu_name()
        self.notes: list[str] = []
        self._spec, self._threads = spec, threads

    def measurer(
        self, kernels: Sequence[Kernel], extensions: Sequence[str], scratch: Path | None
    ) -> BatchMeasurer:
        """A worker process."""
        return Measurer(kernels, self._spec, extensions=extensions, scratch=scratch)

    def step_seconds(self, paths: Sequence[Path], seconds: float) -> list[list[StepTime]] | None:
        """The steps of each module, timed in a process of their own."""
        return variants.step_seconds(paths, self._threads, seconds)

    def agrees(self, path: Path) -> bool:
        """Whether a module computes its golden vectors, in a process of its own."""
        return variants.agrees(path, self._threads)

    def race(self, before: Path, after: Path, seconds: float) -> tuple[float, float]:
        """Milliseconds of a run of either module, in processes that take turns."""
        medians = []
        for _ in starts(seconds):
            report = bench(before, None, RUNS, self._threads, further={"new": ("tinsmith", after)})
            medians.append([timing.median for timing in report.timings])
        return min(first for first, _ in medians), min(second for _, second in medians)
