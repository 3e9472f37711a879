"""The machine's ceilings, measured once: peak FLOP/s, and bandwidth by size of the working set.

The roofline model (Williams, Waterman and Patterson, "Roofline: an insightful
visual performance model", CACM 52(4), 2009): a kernel of F operations on B bytes
cannot take less than max(F / peak, B / bandwidth). Bandwidth depends on which
cache the bytes fit in, so it is measured for several sizes.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.write.linker import run_zig
from tinsmith.compiler.scratch import ScratchFolder, replacing
from tinsmith.compiler.user_folders import cache_folder

KIBIBYTE = 1024
# Per thread: inside the second-level cache, inside the third, and far outside.
WORKING_SETS = (128 * KIBIBYTE, 1024 * KIBIBYTE, 8192 * KIBIBYTE, 98304 * KIBIBYTE)
# Many short windows of which the best counts: on a shared machine some of them are undisturbed.
WINDOWS = 30
WINDOW_SECONDS = 0.008
CACHE_VERSION = 1


@dataclass(frozen=True)
class Roofline:
    """Ceilings of `threads` threads together.

    `flops_per_second` is float32 multiply-adds, counted as two operations each.
    `bandwidth` maps a working set (bytes, all threads together, ascending) to bytes per second.
    """

    cpu: str
    threads: int
    flops_per_second: float
    bandwidth: tuple[tuple[int, float], ...]

    def bytes_per_second(self, working_set: int) -> float:
        """Bandwidth for data of this many bytes: that of the next larger measured set."""
        for size, rate in self.bandwidth:
            if working_set <= size:
                return rate
        return self.bandwidth[-1][1]

    def shortest_seconds(self, flops: int, traffic: int) -> float:
        """The least time that a kernel of so many operations and bytes can take."""
        return max(flops / self.flops_per_second, traffic / self.bytes_per_second(traffic))

    def share(self, flops: int, traffic: int, seconds: float) -> float:
        """Which share of the roofline a kernel reaches, 1.0 being the ceiling."""
        return self.shortest_seconds(flops, traffic) / seconds if seconds > 0 else 0.0


def cpu_name() -> str:
    """The processor's model name, as the kernel prints it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure(threads: int, vector_bits: int) -> Roofline:
    """Measure the ceilings now (about 2 seconds).

    Raises BuildError if the microbenchmark cannot be compiled.
    """
    library = _build(vector_bits // 8)
    float_pointer = ctypes.POINTER(ctypes.c_float)
    library.roofline_multiply_add.restype = ctypes.c_int64
    library.roofline_multiply_add.argtypes = [ctypes.c_int64, float_pointer]
    library.roofline_read.restype = ctypes.c_int64
    library.roofline_read.argtypes = [float_pointer, ctypes.c_int64, ctypes.c_int64, float_pointer]

    sinks = [(ctypes.c_float * 16)() for _ in range(threads)]
    flops = _rate(threads, lambda i, n: library.roofline_multiply_add(n * 50, sinks[i]))
    bandwidth = []
    for size in WORKING_SETS:
        count = size // 4
        arrays = [np.ones(count, np.float32) for _ in range(threads)]
        pointers = [array.ctypes.data_as(float_pointer) for array in arrays]

        def read(
            i: int,
            n: int,
            pointers: list[ctypes._Pointer[ctypes.c_float]] = pointers,
            count: int = count,
        ) -> int:
            return int(library.roofline_read(pointers[i], count, n, sinks[i]))

        bandwidth.append((size * threads, _rate(threads, read)))
    return Roofline(cpu_name(), threads, flops, tuple(bandwidth))


def highest(first: Roofline, second: Roofline) -> Roofline:
    """The higher of the ceilings that two measurements of the same machine found."""
    known = dict(first.bandwidth)
    return Roofline(
        first.cpu,
        first.threads,
        max(first.flops_per_second, second.flops_per_second),
        tuple((size, max(rate, known.get(size, 0.0))) for size, rate in second.bandwidth),
    )


def cached(
    threads: int, vector_bits: int, folder: Path | None = None, again: bool = False
) -> Roofline:
    """The ceilings of this machine from the cache, measured and stored if they are not there.

    With `again` they are measured in any case, and the higher of old and new ceilings kept:
    other work on the machine can only have lowered what was measured.
    """
    folder = cache_folder() if folder is None else folder
    path = folder / "roofline.json"
    key = f"{cpu_name()}|{os.cpu_count()}|{threads}|{vector_bits}"
    entries = _read_cache(path)
    found = entries.get(key)
    known = None
    if found is not None:
        known = Roofline(
            cpu_name(),
            threads,
            float(found["flops_per_second"]),
            tuple((int(size), float(rate)) for size, rate in found["bandwidth"]),
        )
        if not again:
            return known
    result = measure(threads, vector_bits)
    if known is not None:
        result = highest(known, result)
    entries[key] = {
        "flops_per_second": result.flops_per_second,
        "bandwidth": [list(pair) for pair in result.bandwidth],
    }
    _write_cache(path, entries)
    return result


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict) or data.get("version") != CACHE_VERSION:
        return {}
    return dict(data["machines"])


def _write_cache(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    # A folder that cannot be written costs a second measurement next time, nothing else.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"version": CACHE_VERSION, "machines": entries})
        with replacing(path) as stream:
            stream.write(content.encode())
    except OSError:
        pass


def _build(vector_bytes: int) -> ctypes.CDLL:
    source = Path(__file__).with_name("roofline.c")
    with ScratchFolder() as folder:
        output = folder / "roofline.so"
        command: list[str | Path] = ["cc", "-shared", "-fPIC", "-O3", "-s"]
        command += ["-mcpu=native", "-ffp-contract=fast", f"-DVECTOR_BYTES={vector_bytes}"]
        command += [source.absolute(), "-o", output]
        run_zig(command, "build the microbenchmark of the roofline")
        try:
            return ctypes.CDLL(str(output))
        except OSError as error:
            raise BuildError(
                f"the microbenchmark of the roofline cannot be loaded: {error}; "
                "set TMPDIR to a folder that is not mounted noexec"
            ) from error


def _rate(threads: int, work: Callable[[int, int], int]) -> float:
    """Best of several short windows: units of work per second of all threads together.

    `work(thread, repetitions)` returns how many units it did; it releases the
    interpreter lock while it works.
    """
    repetitions = 1
    while True:
        begin = time.perf_counter()
        work(0, repetitions)
        elapsed = time.perf_counter() - begin
        if elapsed > WINDOW_SECONDS / 4:
            break
        repetitions *= 2
    repetitions = max(1, int(repetitions * WINDOW_SECONDS / elapsed))

    best = 0.0
    for _ in range(WINDOWS):
        done = [0] * threads
        gate = threading.Barrier(threads + 1)

        def run(i: int, done: list[int] = done, gate: threading.Barrier = gate) -> None:
            gate.wait()
            done[i] = work(i, repetitions)

        team = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
        for thread in team:
            thread.start()
        gate.wait()
        begin = time.perf_counter()
        for thread in team:
            thread.join()
        best = max(best, sum(done) / (time.perf_counter() - begin))
    return best
