"""A borrowed board: orders to measure modules there, and what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi.libinfo

from tinsmith.compiler.module.manifest import digest_file
from tinsmith.compiler.module.write.driver import RUNTIME_FOLDER
from tinsmith.compiler.module.write.linker import link_shared
from tinsmith.compiler.processes import child_environment, describe_exit
from tinsmith.compiler.tuning.boards.tracker import Tracker
from tinsmith.targets.spec import TargetSpec

_END_SECONDS = 5.0
_NO_WEIGHTS = "none"


class BoardLostError(Exception):
    """The board does not answer any more; the message says why. Never reaches a user."""


@dataclass(frozen=True)
class Order:
    """What a board is to measure; runtime/board.c tells what becomes of it.

    `modules` are folders of compiled modules, `inputs` and `expected` files with the bytes of
    a tensor each.
    """

    modules: Sequence[Path]
    inputs: Sequence[Path]
    threads: int
    seconds: float
    rounds: tuple[int, int]
    expected: Sequence[Path] = ()
    warm: bool = False
    group: int = 0
    limit_seconds: float = 300.0
    limit_bytes: int = 6 * 2**30

    def to_message(self) -> dict[str, Any]:
        """The order for `session`: files by the names they get on the board, and the text."""
        files: dict[str, str] = {}

        def named(path: Path) -> str:
            # Equal content has one name, so that nothing is uploaded twice.
            name = digest_file(path).blake3[:32]
            files[name] = str(path)
            return name

        modules = []
        for folder in self.modules:
            weights = folder / "weights.bin"
            modules.append(named(folder / "model.so"))
            modules.append(named(weights) if weights.exists() else _NO_WEIGHTS)
        inputs, expected = [[named(p) for p in paths] for paths in (self.inputs, self.expected)]
        least, most = self.rounds
        words: list[object] = ["threads", self.threads, "seconds", self.seconds]
        words += ["least", least, "most", most, "warm", int(self.warm), "group", self.group]
        words += ["modules", len(self.modules), *modules]
        words += ["inputs", len(inputs), *inputs, "expected", len(expected), *expected]
        return {
            "files": files,
            "text": " ".join(map(str, words)) + "\n",
            "limit_seconds": self.limit_seconds + 2 * self.seconds,
            "limit_bytes": self.limit_bytes,
        }


@dataclass(frozen=True)
class Findings:
    """What a board has found out, by the position of the module in the order.

    deviations: of each output, relative to the range of its reference.
    times: seconds, (rounds, 1 + steps): of a whole run, and of its steps.
    failure: why there is nothing else; empty if there is.
    """

    deviations: Mapping[int, list[float]] = field(default_factory=dict)
    times: Mapping[int, np.ndarray] = field(default_factory=dict)
    failure: str = ""

    @staticmethod
    def parse(status: int, text: str, limit_seconds: float) -> Findings:
        """From what waitpid and the file `result` tell; both come from the board."""
        if status < 0:
            return Findings(failure=f"took longer than {limit_seconds:.0f} s")
        lines = [line.split() for line in text.splitlines()]
        told = [line[1:] for line in lines if line and line[0] == "error"]
        if told:
            return Findings(failure="".join(c for c in " ".join(told[0]) if c.isprintable())[:300])
        if status or not lines or lines[-1] != ["end"]:
            return Findings(failure=describe_exit(os.waitstatus_to_exitcode(status)))
        deviations: dict[int, list[float]] = {}
        times: dict[int, list[list[float]]] = {}
        try:
            for kind, module, *numbers in lines[:-1]:
                values = [float(number) for number in numbers]
                if kind == "deviation":
                    deviations.setdefault(int(module), []).append(values[1])
                else:
                    times.setdefault(int(module), []).append(values)
            arrays = {module: np.array(rows) for module, rows in times.items()}
        except (ValueError, IndexError):
            return Findings(failure="the board's answer makes no sense")
        return Findings(deviations, arrays)


class Board:
    """A board, held by a process of its own until `close` or until it is lost."""

    def __init__(self, tracker: Tracker, key: str, seconds: int, library: Path) -> None:
        """Begin to borrow a board for `seconds` at most; `connect` waits for it."""
        self.name = ""
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tinsmith.compiler.tuning.boards.session",
                tracker.host, str(tracker.port), key, str(seconds), str(library),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # TVM logs what is told here as one line.
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(),
        )  # fmt: skip

    def connect(self) -> None:
        """Wait for the board. Raises BoardLostError if there is none."""
        self.name = str(self._read()["ready"])

    def measure(self, order: Order) -> Findings:
        """What the board finds out. Raises BoardLostError."""
        message = order.to_message()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        return Findings.parse(answer["status"], answer["result"], message["limit_seconds"])

    def close(self) -> None:
        """Give the board back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = dict(json.loads(line)) if line.endswith("\n") else {"lost": "it does not answer"}
        if "lost" in answer:
            raise BoardLostError(str(answer["lost"]))
        return answer


def build_library(spec: TargetSpec, folder: Path) -> Path:
    """runtime/board.c, built for boards that are such machines."""
    path = folder / "board.so"
    includes = [
        RUNTIME_FOLDER,
        Path(tvm_ffi.libinfo.find_include_path()),
        Path(tvm_ffi.libinfo.find_dlpack_include_path()),
    ]
    source = [RUNTIME_FOLDER / "board.c"]
    link_shared(source, path, spec, includes, [], ["__tvm_ffi_measure"], ["dl"])
    return path
