"""Boards as the place where candidates and whole models run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.evaluate.inputs import random_inputs, signature_of
from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.module.golden import FILE_NAME as GOLDEN_NAME
from tinsmith.compiler.module.golden import GoldenVectors, decode_golden
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.module.signature import numpy_dtype
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.compiler.tuning.batch import Kernel
from tinsmith.compiler.tuning.boards.board import Findings, Order
from tinsmith.compiler.tuning.boards.candidates import write_tensors
from tinsmith.compiler.tuning.boards.fleet import Fleet
from tinsmith.compiler.tuning.boards.measurer import BoardMeasurer
from tinsmith.compiler.tuning.boards.tracker import Tracker
from tinsmith.compiler.tuning.runner import RUNS, BatchMeasurer, starts
from tinsmith.targets.spec import TargetSpec

# As in `variants`.
_QUANTILE = 0.25
_ROUNDS = (9, 200)
_RACE_SECONDS = 10.0


class BoardRunner:
    """Boards that a tracker lends; one of them runs whole models. A context manager."""

    def __init__(
        self, tracker: Tracker, key: str, spec: TargetSpec, threads: int, seconds: int
    ) -> None:
        """Borrow all free boards named `key` for `seconds` at most.

        Raises TargetError if the tracker does not answer, or has no board that can be used.
        """
        self.processor = f"board {key}"
        self._spec, self._threads = spec, threads
        with ExitStack() as stack:
            self._folder = stack.enter_context(ScratchFolder())
            self._fleet = Fleet(tracker, key, spec, seconds, self._folder)
            stack.callback(self._fleet.close)
            self._stack = stack.pop_all()
        self.notes = self._fleet.notes

    def __enter__(self) -> BoardRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def measurer(
        self, kernels: Sequence[Kernel], extensions: Sequence[str], scratch: Path | None
    ) -> BatchMeasurer:
        """A lane for each board."""
        return BoardMeasurer(self._fleet, kernels, self._spec, extensions, scratch)

    def step_seconds(self, paths: Sequence[Path], seconds: float) -> list[list[StepTime]] | None:
        """The steps of each module, timed on one board, in turns."""
        found = self._measured(paths, seconds, _ROUNDS)
        if found.failure:
            self.notes.append(f"on the board, a model {found.failure}")
            return None
        steps = []
        for index, path in enumerate(paths):
            times = np.quantile(found.times[index][:, 1:], _QUANTILE, axis=0)
            names = read_manifest(path).steps
            pairs = zip(names, times.tolist(), strict=True)
            steps.append([StepTime(i, name, time) for i, (name, time) in enumerate(pairs)])
        return steps

    def agrees(self, path: Path) -> bool:
        """Whether the board computes the module's golden vectors; True if it has none."""
        golden = _golden(path)
        if golden is None:
            return True
        found = self._measured([path], 0.0, (0, 0), golden.outputs)
        return not found.failure and max(found.deviations[0]) <= golden.tolerance

    def race(self, before: Path, after: Path, seconds: float) -> tuple[float, float]:
        """Milliseconds of a run of either module on one board, taking turns."""
        medians = []
        for _ in starts(seconds):
            found = self._measured([before, after], _RACE_SECONDS, (_ROUNDS[0], RUNS))
            if found.failure:
                raise BuildError(f"the models cannot be compared: on the board, {found.failure}")
            medians.append([1e3 * float(np.median(found.times[i][:, 0])) for i in (0, 1)])
        return min(first for first, _ in medians), min(second for _, second in medians)

    def _measured(
        self,
        paths: Sequence[Path],
        seconds: float,
        rounds: tuple[int, int],
        expected: Sequence[np.ndarray] = (),
    ) -> Findings:
        golden = _golden(paths[0])
        if golden is not None:
            inputs = list(golden.inputs)
        else:
            signature = signature_of(read_manifest(paths[0]).inputs)
            inputs = list(random_inputs(signature, {}, 0).values())
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            order = Order(
                modules=paths,
                inputs=write_tensors(inputs, Path(folder)),
                expected=write_tensors(expected, Path(folder)),
                threads=self._threads,
                seconds=seconds,
                rounds=rounds,
                warm=rounds[1] > 0,
            )
            return self._fleet.measure(order)


def _golden(path: Path) -> GoldenVectors | None:
    """The golden vectors of a module that this machine cannot load, if it has any."""
    manifest = read_manifest(path)
    if GOLDEN_NAME not in manifest.files:
        return None
    inputs, outputs = (
        [(numpy_dtype(t.dtype), tuple(int(n) for n in t.shape)) for t in tensors]
        for tensors in (manifest.inputs, manifest.outputs)
    )
    return decode_golden((path / GOLDEN_NAME).read_bytes(), str(path), inputs, outputs)
