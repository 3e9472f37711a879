"""A process that has imported the compiler and forks a child for each file.

    python -m tests.fuzz.nursery

Orders come as JSON lines on standard input (`path`, `stage`, `seconds`), each is answered by one
on standard output. Whatever a file does, it does to the child. The limits of memory are 1 GiB or
20 times the size of the file beyond what the nursery has; those of time count the processor, so
that a busy machine is not taken for a hang, and four times as long by the clock.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from pathlib import Path
from typing import Any

STAGES = ("import", "compile")
_MEMORY = 2**30
_ADDRESSES = 6 * 2**30
# What a child may say; the rest of a traceback is of no use.
_LONGEST = 4000


def main() -> None:
    """Answer orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import onnxruntime  # noqa: F401  (before the fork: it takes half a second)

    import tinsmith.compiler.api  # noqa: F401
    from tinsmith.compiler.frontends.registry import import_model  # noqa: F401

    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(_watched(order)) + "\n")
        answers.flush()


def _watched(order: dict[str, Any]) -> dict[str, Any]:
    """What became of one file: `outcome`, `detail`, seconds of processor, bytes of memory."""
    size = sum(path.stat().st_size for path in Path(order["path"]).parent.iterdir())
    allowed = max(_MEMORY, 20 * size)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _child(order, sender)
    os.close(sender)
    content, expired = _collect(receiver, child, 4 * order["seconds"] + 5)
    os.close(receiver)
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = max(0, usage.ru_maxrss * 1024 - own)
    seconds = usage.ru_utime + usage.ru_stime
    if expired or code == -signal.SIGXCPU:
        result = {"outcome": "hang", "detail": f"{seconds:.0f} s"}
    elif not content:
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        result = {"outcome": "crash", "detail": name}
    else:
        result = json.loads(content)
    if memory > allowed and result["outcome"] in ("good", "refused"):
        result = {"outcome": "memory", "detail": f"{memory >> 20} MiB; {result['detail']}"}
    return {**result, "seconds": seconds, "memory": memory}


def _child(order: dict[str, Any], sender: int) -> None:
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES,) * 2)
        limit = int(order["seconds"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        with os.fdopen(sender, "wb") as stream:
            stream.write(json.dumps(_tried(order)).encode())
    finally:
        os._exit(0)


def _tried(order: dict[str, Any]) -> dict[str, Any]:
    from tinsmith.compiler.errors import PassError, TinsmithError

    try:
        _go(order["path"], order["stage"])
    except TinsmithError as error:
        message = str(error)
        if "\n" in message or any(unicodedata.category(c) in ("Cc", "Cs") for c in message):
            return {"outcome": "raw", "detail": repr(message)[:_LONGEST]}
        if isinstance(error, PassError) or error.exit_code == 70:
            return {"outcome": "internal", "detail": message[:_LONGEST]}
        if error.exit_code == 1:
            return {"outcome": "wrong", "detail": message[:_LONGEST]}
        return {"outcome": "refused", "detail": message[:_LONGEST]}
    except MemoryError:
        return {"outcome": "memory", "detail": traceback.format_exc()[-_LONGEST:]}
    except BaseException:
        return {"outcome": "internal", "detail": traceback.format_exc()[-_LONGEST:]}
    return {"outcome": "good", "detail": ""}


def _go(path: str, stage: str) -> None:
    if stage == "import":
        from tinsmith.compiler.frontends.registry import import_model

        import_model(path)
        return
    from tinsmith.compiler.api import compile_to

    with tempfile.TemporaryDirectory() as folder:
        compile_to(path, Path(folder) / "out", runner=False, static_library=False, tuned=False)


def _collect(receiver: int, child: int, limit_seconds: float) -> tuple[bytes, bool]:
    """What comes through the pipe, and whether time ran out."""
    content = b""
    deadline = time.monotonic() + limit_seconds
    with selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                part = os.read(int(key.fd), 1 << 16)
                if not part:
                    return content, False
                content += part
    return content, True


if __name__ == "__main__":
    main()
