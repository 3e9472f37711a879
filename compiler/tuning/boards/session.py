"""The process that holds a board: the child side of `board`.

    python -m tinsmith.compiler.tuning.boards.session HOST PORT KEY SECONDS LIBRARY

It borrows one board of the name KEY from the tracker at HOST:PORT, for SECONDS at most, and
loads LIBRARY there. Orders come as JSON lines on standard input, each is answered by one on
standard output. When standard input ends, it finishes what the board is doing and gives the
board back: the session's connection closes, and the board registers anew. A board that does
not answer ends this process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tvm import rpc

from tinsmith.compiler.errors import TargetError, TinsmithError
from tinsmith.compiler.tuning.boards.tracker import Tracker

# So much stays on the board, for orders to come.
_MOST_BYTES = 2**30
_CONNECT_SECONDS = 20.0
# For what an order does beyond its limit: uploads at the pace of a slow network.
_GRACE_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 2**20


class _Session:
    def __init__(self, tracker: Tracker, key: str, seconds: int, library: Path) -> None:
        _die_after(_CONNECT_SECONDS)
        address = tracker.borrow(key)
        self.name = str(address)
        self._remote = rpc.connect(
            address.host, address.port, address.match_key, session_timeout=seconds
        )
        self._remote.upload(str(library))
        try:
            self._measure = self._remote.load_module(library.name)["measure"]
        except RuntimeError as error:
            raise TargetError(
                f"it cannot load code for that target, and may be another machine: {_line(error)}"
            ) from error
        self._uploaded: dict[str, int] = {}
        _die_after(0)

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Upload the files of the order that are not there yet, and measure."""
        sizes = {name: os.path.getsize(path) for name, path in order["files"].items()}
        missing = [name for name in sizes if name not in self._uploaded]
        upload_seconds = sum(sizes[name] for name in missing) / _SLOWEST_BYTES_PER_SECOND
        _die_after(_GRACE_SECONDS + upload_seconds + order["limit_seconds"])
        self._forget(set(sizes), sum(sizes[name] for name in missing))
        for name in missing:
            self._remote.upload(order["files"][name], target=name)
            self._uploaded[name] = sizes[name]
        self._remote.upload(bytearray(order["text"].encode()), target="order")
        milliseconds = int(1000 * order["limit_seconds"])
        status = self._measure("order", milliseconds, order["limit_bytes"])
        found = bytes(self._remote.download("result"))
        _die_after(0)
        return {"status": int(status), "result": found.decode(errors="replace")}

    def _forget(self, needed: set[str], more: int) -> None:
        """Delete the oldest files until `more` bytes fit."""
        for name in [name for name in self._uploaded if name not in needed]:
            if sum(self._uploaded.values()) + more <= _MOST_BYTES:
                return
            self._remote.remove(name)
            del self._uploaded[name]


def _die_after(seconds: float) -> None:
    """End the process then, whatever it does; 0 takes it back."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main(host: str, port: str, key: str, seconds: str, library: str) -> None:
    """Answer orders until standard input ends or the board is lost."""
    # Libraries may print to standard output; only answers may reach the job.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        session = _Session(Tracker(host, int(port)), key, int(seconds), Path(library))
        tell({"ready": session.name})
        for line in sys.stdin:
            tell(session.answer(json.loads(line)))
    except TinsmithError as error:
        tell({"lost": str(error)})
    except (RuntimeError, OSError) as error:
        tell({"lost": f"its RPC server failed: {_line(error)}"})


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(*sys.argv[1:])
