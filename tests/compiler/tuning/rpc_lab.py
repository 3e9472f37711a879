"""A tracker and boards of TVM's RPC on loopback: processes of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.tuning.boards.tracker import Tracker

KEY = "testboard"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Tool:
    """A command of TVM's, with all processes that it starts."""

    def __init__(self, name: str, *options: object) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", f"tvm.exec.{name}", "--host", "127.0.0.1"]
        ports = ["--port", str(self.port), "--port-end", str(self.port + 1)]
        self._process = subprocess.Popen(
            [*command, *ports, *map(str, options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """As if its machine lost power."""
        if self.is_alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Lab:
    """A tracker, and as many boards as are added."""

    def __init__(self) -> None:
        self._tool = Tool("rpc_tracker")
        self.tracker = Tracker("127.0.0.1", self._tool.port)
        self.boards: list[Tool] = []

    def add_board(self, key: str = KEY) -> Tool:
        self.boards.append(Tool("rpc_server", "--tracker", self.tracker, "--key", key))
        return self.boards[-1]

    def ensure(self, count: int) -> None:
        """Have so many boards and no more, all of them free."""
        self.boards = [board for board in self.boards if board.is_alive]
        for board in self.boards[count:]:
            board.kill()
        del self.boards[count:]
        for _ in range(count - len(self.boards)):
            self.add_board()
        self.wait_for_free(count)

    def free(self, key: str = KEY) -> int:
        """How many boards can be borrowed now."""
        try:
            return self.tracker.free_boards(key)
        except TargetError:
            return 0

    def wait_for_free(self, count: int, key: str = KEY, seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while self.free(key) != count:
            assert time.monotonic() < deadline, f"{self.free(key)} boards are free, not {count}"
            time.sleep(0.1)

    def close(self) -> None:
        for tool in (*self.boards, self._tool):
            tool.kill()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
