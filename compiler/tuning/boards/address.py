"""The address of a tracker, as `--rpc` gives it."""

from __future__ import annotations

from tinsmith.compiler.errors import ConfigError


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as host and port; raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--rpc {text}: expected HOST:PORT, such as 127.0.0.1:9190")
    return host.strip("[]"), int(port)
