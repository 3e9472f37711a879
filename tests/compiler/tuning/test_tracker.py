"""The tracker of boards: what it is asked, and what is told when it does not answer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tvm.rpc import base
from typer.testing import CliRunner

from tinsmith.compiler.cli import app
from tinsmith.compiler.errors import ConfigError, TargetError
from tinsmith.compiler.tuning.boards.tracker import Tracker
from tinsmith.compiler.tuning.report import TuneOptions

SERVERS = [{"key": "server:pi5"}, {"key": "server:pi5"}, {"key": "server:rock"}]


@contextmanager
def answering(*answers: Any, greets: bool = True) -> Iterator[Tracker]:
    """A tracker that gives one of `answers` to each connection; None is silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    magic = connection.recv(4)
                    connection.sendall(magic if greets else b"HTTP")
                    if greets:
                        base.recvjson(connection)
                    if answer is not None:
                        base.sendjson(connection, answer)
                    connection.recv(1)  # until the other side closes

        thread = threading.Thread(target=serve)
        thread.start()
        yield Tracker("127.0.0.1", server.getsockname()[1])
        thread.join()


def summary(free: int, servers: list[dict[str, str]] = SERVERS) -> list[Any]:
    queues = {"pi5": {"free": free, "pending": 0}}
    return [0, {"server_info": servers, "queue_info": queues}]


def test_free_boards_are_counted() -> None:
    with answering(summary(2), summary(1)) as tracker:
        assert tracker.free_boards("pi5") == 2
        assert tracker.free_boards("pi5") == 1


def test_a_board_is_borrowed() -> None:
    with answering([0, ["192.0.2.7", 9091, "pi5:0.25"]]) as tracker:
        address = tracker.borrow("pi5")
    assert (address.host, address.port, address.match_key) == ("192.0.2.7", 9091, "pi5:0.25")
    assert str(address) == "192.0.2.7:9091"


def test_what_cannot_be_borrowed_is_told() -> None:
    with answering(summary(0), summary(1), summary(0, []), [-1, None]) as tracker:
        with pytest.raises(TargetError, match=r"all 2 boards .* are in use; try again"):
            tracker.free_boards("pi5")
        with pytest.raises(TargetError, match=r"--key jetson: .* no such board; it has pi5, rock"):
            tracker.free_boards("jetson")
        with pytest.raises(TargetError, match=r"no board has registered .* tvm.exec.rpc_server"):
            tracker.free_boards("pi5")
        with pytest.raises(TargetError, match="refuses to tell"):
            tracker.free_boards("pi5")


def test_what_is_no_tracker_is_told() -> None:
    with (
        answering(None, greets=False) as tracker,
        pytest.raises(TargetError, match="no RPC tracker there: what answers is no tracker"),
    ):
        tracker.free_boards("pi5")


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinsmith.compiler.tuning.boards.tracker._SECONDS", 0.2)
    with answering(None) as tracker, pytest.raises(TargetError, match="no answer; start one with"):
        tracker.free_boards("pi5")


@pytest.mark.parametrize("text", ["9190", "host", "host:", ":9190", "host:port", "host:99999"])
def test_addresses_are_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        Tracker.parse(text)


def test_addresses_may_have_colons() -> None:
    assert Tracker.parse("[::1]:9190") == Tracker("::1", 9190)


def test_one_option_without_the_other_is_refused() -> None:
    for options in ({"rpc": "127.0.0.1:9190"}, {"key": "pi5"}):
        with pytest.raises(ConfigError, match="belong together"):
            TuneOptions(**options)  # type: ignore[arg-type]


def test_options_are_text() -> None:
    for options in ({"rpc": 9190, "key": "pi5"}, {"rpc": "127.0.0.1:9190", "key": ""}):
        with pytest.raises(ConfigError, match="must be text"):
            TuneOptions(**options)  # type: ignore[arg-type]


def test_a_job_file_may_name_boards(small_model_file: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    model = os.path.relpath(small_model_file, tmp_path)
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(f'[[job]]\nmodel = "{model}"\nrpc = "127.0.0.1:{port}"\nkey = "pi5"\n')
    log = ["--log", str(tmp_path / "log"), "--json"]
    result = CliRunner().invoke(app, ["tune", "--job", str(jobs), *log])
    assert result.exit_code == 2
    assert "no RPC tracker there" in result.stdout


def test_an_unreachable_tracker_ends_the_command_at_once(
    small_model_file: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Nothing is waited for, and nothing compiled before.
    begin = time.process_time()
    command = ["tune", str(small_model_file), "--target", "cortex-a76", "--log", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--rpc", f"127.0.0.1:{port}", "--key", "pi5"])
    assert result.exit_code == 2
    assert "no RPC tracker there" in result.stderr and "tvm.exec.rpc_tracker" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert time.process_time() - begin < 10
