"""Measures candidates on several boards at once: one lane each, with a worker that builds."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tinsmith.compiler.tuning.batch import Kernel, Outcome
from tinsmith.compiler.tuning.boards.board import Board, BoardLostError
from tinsmith.compiler.tuning.boards.candidates import judge_findings, order_for
from tinsmith.compiler.tuning.boards.fleet import Fleet
from tinsmith.compiler.tuning.measure import Ledger, Measured, Measurer
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

# Most candidates of one module: while one board measures its part, another one's is built.
_MOST_OF_A_PART = 12


class BoardMeasurer:
    """As `Measurer`, on all boards of `fleet`. A context manager."""

    def __init__(
        self,
        fleet: Fleet,
        kernels: Sequence[Kernel],
        spec: TargetSpec,
        extensions: Sequence[str],
        scratch: Path | None,
    ) -> None:
        self.ledger = Ledger()
        self._fleet, self._scratch = fleet, scratch
        self._stack = ExitStack()
        self._builders = {
            board: self._stack.enter_context(
                Measurer(kernels, spec, extensions=extensions, scratch=scratch)
            )
            for board in fleet.boards
        }

    @property
    def lanes(self) -> int:
        """The number of boards."""
        return max(1, len(self._fleet.boards))

    def __enter__(self) -> BoardMeasurer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def measure(self, kernel: int, candidates: Sequence[Decisions], seconds: float) -> Measured:
        """As `Measurer.measure`; what a lost board has not measured goes to the others.

        Outcomes are None if there are no others. Raises NoDeviceError if there is no board to
        begin with.
        """
        self._fleet.check()
        begin = time.perf_counter()
        boards = self._fleet.boards
        work = _Work(candidates, len(boards))
        with ThreadPoolExecutor(max_workers=len(boards)) as pool:
            try:
                lanes = [pool.submit(self._lane, b, work, kernel, seconds) for b in boards]
                for lane in lanes:
                    lane.result()
            finally:
                work.stop()
        self.ledger.run_seconds += time.perf_counter() - begin
        self.ledger.batches += 1
        self.ledger.crashes += sum(bool(o.failure) for o in work.outcomes if o is not None)
        return Measured(tuple(work.outcomes), tuple(work.default_seconds))

    def _lane(self, board: Board, work: _Work, kernel: int, seconds: float) -> None:
        """Work on parts with one board, until nothing is left or the board is lost."""
        while (part := work.take()) is not None:
            try:
                chosen = [work.candidates[index] for index in part]
                share = seconds * (len(chosen) + 2) / (len(work.candidates) + 2)
                work.finish(part, *self._measured(board, kernel, chosen, share))
            except BoardLostError as error:
                work.give_back(part)
                self._fleet.drop(board, str(error))
                return
            except BaseException:
                work.stop()
                raise

    def _measured(
        self, board: Board, kernel: int, candidates: Sequence[Decisions], seconds: float
    ) -> tuple[float, Sequence[Outcome] | str]:
        """The default's seconds and the outcomes, or why there are none."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            built: dict[str, Any] = self._builders[board].ask(
                kernel, candidates, seconds, Path(folder)
            )
            if "failure" in built:
                return 0.0, str(built["failure"])
            findings = board.measure(order_for(built, seconds))
        if findings.failure:
            return 0.0, findings.failure
        return judge_findings(built, findings)


class _Work:
    """Candidates in parts that several lanes take; what a lane gives back another one takes."""

    def __init__(self, candidates: Sequence[Decisions], lanes: int) -> None:
        self.candidates = candidates
        self.outcomes: list[Outcome | None] = [None] * len(candidates)
        self.default_seconds = [0.0] * len(candidates)
        indices = list(range(len(candidates)))
        size = max(1, min(_MOST_OF_A_PART, -(-len(indices) // lanes)))
        self._parts = deque(indices[i : i + size] for i in range(0, len(indices), size))
        self._busy = 0
        self._changed = threading.Condition()

    def take(self) -> list[int] | None:
        """A part to measure; None if all is done. Waits while a part may still be given back."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or not self._busy)
            if not self._parts:
                return None
            self._busy += 1
            return self._parts.popleft()

    def finish(
        self, part: list[int], default_seconds: float, outcomes: Sequence[Outcome] | str
    ) -> None:
        """Keep the outcomes; a part that failed is halved until the one at fault is alone."""
        with self._changed:
            if isinstance(outcomes, str) and len(part) > 1:
                half = len(part) // 2
                self._parts += [part[:half], part[half:]]
            else:
                told = [Outcome(failure=outcomes)] if isinstance(outcomes, str) else outcomes
                for index, outcome in zip(part, told, strict=True):
                    self.outcomes[index] = outcome
                    self.default_seconds[index] = default_seconds
            self._release()

    def give_back(self, part: list[int]) -> None:
        """Leave the part to another lane."""
        with self._changed:
            self._parts.append(part)
            self._release()

    def stop(self) -> None:
        """Nothing is to be taken any more."""
        with self._changed:
            self._parts.clear()
            self._busy = 0
            self._changed.notify_all()

    def _release(self) -> None:
        self._busy = max(0, self._busy - 1)
        self._changed.notify_all()
