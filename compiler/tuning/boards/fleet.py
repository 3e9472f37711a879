"""The boards that a job has borrowed: dropped when they are lost, given back when it ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.tuning.boards.board import (
    Board,
    BoardLostError,
    Findings,
    Order,
    build_library,
)
from tinsmith.compiler.tuning.boards.tracker import Tracker
from tinsmith.compiler.tuning.runner import NoDeviceError
from tinsmith.targets.spec import TargetSpec


class Fleet:
    """All boards of one name that are free. `notes` tells of those that were lost."""

    def __init__(
        self, tracker: Tracker, key: str, spec: TargetSpec, seconds: int, folder: Path
    ) -> None:
        """Borrow the boards for `seconds` at most; `folder` is for the library that they load.

        Raises TargetError if there is none, or none that runs code for `spec`.
        """
        self.key = key
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._last_reason = ""
        free = tracker.free_boards(key)
        library = build_library(spec, folder)
        borrowed = [Board(tracker, key, seconds, library) for _ in range(free)]
        self.boards: Sequence[Board] = tuple(borrowed)
        for board in borrowed:
            try:
                board.connect()
            except BoardLostError as error:
                self.drop(board, str(error))
        if not self.boards:
            raise TargetError(
                f"--key {key}: no board can be used for target {spec.name}: {self._last_reason}"
            )

    def check(self) -> None:
        """Raise NoDeviceError if no board is left."""
        if not self.boards:
            raise NoDeviceError(f"no board is left: {self._last_reason}")

    def measure(self, order: Order) -> Findings:
        """What one of the boards finds out. Raises NoDeviceError if all are lost over it."""
        while True:
            self.check()
            board = self.boards[0]
            try:
                return board.measure(order)
            except BoardLostError as error:
                self.drop(board, str(error))

    def drop(self, board: Board, reason: str) -> None:
        """Do without a board from now on."""
        with self._lock:
            self.boards = tuple(other for other in self.boards if other is not board)
            self._last_reason = reason
            self.notes.append(f"board {board.name or self.key} was lost: {reason}")
        board.close()

    def close(self) -> None:
        """Give the boards back."""
        for board in self.boards:
            board.close()
