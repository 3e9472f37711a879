"""The tracker of TVM's RPC: which boards have registered, and borrowing one.

The protocol is that of `tvm.rpc.client.TrackerSession`, whose own connections have no
time limits: a tracker that is not there would be waited for.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

from tvm.rpc import base

from tinsmith.compiler.errors import TargetError
from tinsmith.compiler.tuning.boards.address import parse_address

_SECONDS = 5.0


@dataclass(frozen=True)
class BoardAddress:
    """Where a borrowed board waits for us; it lets in who knows `match_key`."""

    host: str
    port: int
    match_key: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Tracker:
    """The address of a tracker."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Tracker:
        """`HOST:PORT` as an address; raises ConfigError."""
        return Tracker(*parse_address(text))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def free_boards(self, key: str) -> int:
        """How many boards of the name `key` can be borrowed, at least one.

        Raises TargetError if the tracker does not answer, knows no such board, or has lent all.
        """
        code, summary = self._ask([base.TrackerCode.SUMMARY])
        if code != base.TrackerCode.SUCCESS:
            raise TargetError(f"--rpc {self}: the tracker refuses to tell which boards it has")
        names = [str(server["key"]).partition(":")[2] for server in summary["server_info"]]
        if not names:
            raise TargetError(
                f"--rpc {self}: no board has registered with the tracker; start one there with "
                f"`python -m tvm.exec.rpc_server --host 127.0.0.1 --tracker {self} --key {key}`"
            )
        if key not in names:
            known = ", ".join(sorted(set(names)))
            raise TargetError(f"--key {key}: the tracker {self} has no such board; it has {known}")
        free = int(summary["queue_info"].get(key, {}).get("free", 0))
        if not free:
            raise TargetError(
                f"--key {key}: all {names.count(key)} boards of the tracker {self} are in use; "
                "try again when one is free"
            )
        return free

    def borrow(self, key: str) -> BoardAddress:
        """A free board of that name. Raises TargetError if there is none within seconds."""
        code, address = self._ask([base.TrackerCode.REQUEST, key, "", 1])
        if code != base.TrackerCode.SUCCESS:
            raise TargetError(f"--key {key}: the tracker {self} lends no board")
        host, port, match_key = address
        return BoardAddress(str(host), int(port), str(match_key))

    def _ask(self, message: list[Any]) -> Any:
        magic = struct.pack("<i", base.RPC_TRACKER_MAGIC)
        try:
            with socket.create_connection((self.host, self.port), _SECONDS) as connection:
                connection.sendall(magic)
                if base.recvall(connection, len(magic)) != magic:
                    raise OSError("what answers is no tracker")
                base.sendjson(connection, message)
                return base.recvjson(connection)
        except (OSError, ValueError) as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error
            raise TargetError(
                f"--rpc {self}: no RPC tracker there: {reason}; start one with "
                f"`python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {self.port}`"
            ) from error
