"""Latency of a module beside ONNX Runtime and OpenVINO, interleaved on the same machine.

Each contestant lives in a process of its own and is stopped (SIGSTOP) while
another one runs, so that nobody's spinning threads take the others' cores.
Short bursts in turn spread the machine's moods evenly over all of them.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinsmith.compiler.errors import BuildError, ConfigError
from tinsmith.compiler.evaluate.inputs import Domains, chosen_sizes, random_inputs, signature_of
from tinsmith.compiler.evaluate.peers import PEERS, installed
from tinsmith.compiler.module.loader import folder_of, load
from tinsmith.compiler.processes import child_environment, describe_exit, ending_with_this
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.passes.progress import Progress

if TYPE_CHECKING:
    from tinsmith.compiler.frontends.frontend import ForPeers

MODULE_LABEL = "Tinsmith"
BOUND_MODEL = "model.onnx"
BURST = 5
# Before each burst: caches, branch predictors and sleeping threads recover from the others' turn.
WARM_UP_MS = 10


@dataclass(frozen=True)
class Timing:
    """Latencies of one contestant, in milliseconds, one entry per run."""

    label: str
    version: str
    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def best(self) -> float:
        return min(self.milliseconds)

    @property
    def p95(self) -> float:
        return float(np.percentile(self.milliseconds, 95))


@dataclass(frozen=True)
class BenchReport:
    """Timings of all contestants, the module first; `missing` names who did not run, and why."""

    threads: int
    timings: tuple[Timing, ...]
    missing: Mapping[str, str]

    @property
    def module(self) -> Timing:
        return self.timings[0]

    def ratio(self, timing: Timing) -> float:
        """How many times as long as the module this contestant takes (medians)."""
        return timing.median / self.module.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in milliseconds."""
        return {
            "threads": self.threads,
            "timings": [
                {
                    "label": timing.label,
                    "version": timing.version,
                    "runs": len(timing.milliseconds),
                    "median_ms": timing.median,
                    "p95_ms": timing.p95,
                    "best_ms": timing.best,
                    "ratio_to_module": self.ratio(timing),
                }
                for timing in self.timings
            ],
            "missing": dict(self.missing),
        }


def bench(
    module: Path,
    model: Path | None = None,
    runs: int = 50,
    threads: int = 2,
    progress: Progress | None = None,
    precision: str = "float32",
    further: Mapping[str, tuple[str, Path]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> BenchReport:
    """Time `runs` runs of the module and, given the ONNX `model`, of every peer installed.

    All get the same inputs; peers compute a float32 model in `precision`. `further` contestants
    by label: the package of a peer, and a file of the same model in a form of its own. `sizes`
    are those of open dimensions, by default the smallest. Raises ArtifactError if the module
    cannot be loaded, ModelError if `model` is another one, InputError for other `sizes`.
    """
    if runs < 1 or threads < 1:
        raise ConfigError("bench needs at least one run and one thread")
    known = sorted(frozenset().union(*(peer.precisions for peer in PEERS)))
    if precision not in known:
        raise ConfigError(f"--precision {precision}: choose from {', '.join(known)}")
    missing: dict[str, str] = {}
    # Unpacked here, and not by the contestant's process, which ends without cleaning up.
    with ScratchFolder() as folder, folder_of(module) as unpacked:
        inputs, archive, for_peers = _prepare(unpacked, model, folder, sizes)
        contestants = [_Contestant(MODULE_LABEL, "tinsmith", unpacked, archive, threads)]
        try:
            if contestants[0].error is not None:
                raise BuildError(f"{module}: {contestants[0].error}")
            for peer in PEERS:
                if for_peers is None:
                    missing[peer.label] = "needs the ONNX model: --model MODEL.onnx"
                elif not installed(peer):
                    missing[peer.label] = "not installed: pip install 'tinsmith[bench]'"
                elif precision not in peer.precisions:
                    missing[peer.label] = f"does not compute in {precision}"
                else:
                    opened = _Contestant(
                        peer.label,
                        peer.package,
                        folder / BOUND_MODEL,
                        archive,
                        threads,
                        precision,
                    )
                    if opened.error is not None:
                        opened = _second_try(opened, for_peers, inputs, folder)
                    contestants.append(opened)
                    if opened.error is not None:
                        missing[peer.label] = opened.error
            for label, (package, file) in (further or {}).items():
                opened = _Contestant(label, package, file, archive, threads, precision)
                contestants.append(opened)
                if opened.error is not None:
                    missing[label] = opened.error
            contestants = [one for one in contestants if one.error is None]
            _race(contestants, runs, progress)
            timings = tuple(
                Timing(one.label, one.version, tuple(one.milliseconds)) for one in contestants
            )
        finally:
            for one in contestants:
                one.close()
    return BenchReport(threads, timings, missing)


def _prepare(
    module: Path, model: Path | None, folder: Path, sizes: Mapping[str, int] | None
) -> tuple[dict[str, np.ndarray], Path, ForPeers | None]:
    """Inputs for all contestants, the same in a file, and the model of the peers.

    `sizes` are those of open dimensions, by default the smallest. `folder` gets the model with
    the module's shapes and constants. Loading the module here makes a damaged one fail before any
    process is started.
    """
    with load(module, threads=1) as loaded:
        manifest, sets = loaded.manifest, loaded.golden_sets()
    sizes = chosen_sizes(manifest, sizes or {})
    golden = next((one for one in sets if one.sizes == tuple(sizes.values())), None)
    manifest = manifest.sized(sizes)
    signature = signature_of(manifest.inputs)
    domains: Domains = {}
    for_peers: ForPeers | None = None
    if model is not None:
        from tinsmith.compiler.evaluate.original import open_original

        original = open_original(model, manifest)
        domains, for_peers = original.domains, original.for_peers
    if golden is not None:
        inputs = dict(zip(signature, golden.inputs, strict=True))
    else:
        inputs = random_inputs(signature, domains, seed=0)

    archive = folder / "inputs.npz"
    np.savez(archive, **inputs)  # type: ignore[arg-type]
    if for_peers is not None:
        (folder / BOUND_MODEL).write_bytes(for_peers.bound)
    return inputs, archive, for_peers


def _second_try(
    failed: _Contestant, model: ForPeers, inputs: Mapping[str, np.ndarray], folder: Path
) -> _Contestant:
    """The peer with the model as it is in its file, said with its version; `failed` if it can't.

    ONNX Runtime refuses some models, or dies of them, when a constant decides which branch of an
    `If` is taken, or when the shapes do not suit the other one.
    """
    untouched, archive = folder / "untouched.onnx", folder / "untouched.npz"
    untouched.write_bytes(model.untouched())
    np.savez(archive, **inputs, **model.constants)  # type: ignore[arg-type]
    again = failed.with_files(untouched, archive)
    if again.error is not None:
        again.close()
        return failed
    failed.close()
    again.version += " (nothing bound)"
    return again


def _race(contestants: list[_Contestant], runs: int, progress: Progress | None) -> None:
    """Bursts in turn, each after some untimed runs; who begins changes from round to round."""
    rounds = -(-runs // BURST)
    for index in range(rounds):
        count = min(BURST, runs - index * BURST)
        turn = index % len(contestants)
        for one in contestants[turn:] + contestants[:turn]:
            one.burst(count)
        if progress is not None:
            progress("bursts in turn", (index + 1) / rounds)


class _Contestant:
    """The parent's side of one `tinsmith.compiler.evaluate.contestant` process."""

    def __init__(
        self,
        label: str,
        runtime: str,
        path: Path,
        inputs: Path,
        threads: int,
        precision: str = "float32",
    ) -> None:
        self.label = label
        self._terms = (runtime, threads, precision)
        self.version = ""
        self.error: str | None = None
        self.milliseconds: list[float] = []
        # A pipe that nobody reads would block a talkative library.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            # A stopped process does not see the end of its standard input.
            ending_with_this([sys.executable, "-m", "tinsmith.compiler.evaluate.contestant"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=child_environment(),
        )
        order = {
            "runtime": runtime,
            "path": str(path),
            "inputs": str(inputs),
            "threads": threads,
            "precision": precision,
        }
        answer = self._ask(order)
        self.error = answer.get("error")
        if self.error is None:
            self.version = str(answer["version"])
            self._ask({"runs": 1, "warm_up_ms": WARM_UP_MS})
            self._process.send_signal(signal.SIGSTOP)

    def with_files(self, path: Path, inputs: Path) -> _Contestant:
        """Another one of the same kind, for another model and other inputs."""
        runtime, threads, precision = self._terms
        return _Contestant(self.label, runtime, path, inputs, threads, precision)

    def burst(self, runs: int) -> None:
        """Wake up, warm up, run `runs` times timed, sleep again."""
        self._process.send_signal(signal.SIGCONT)
        times = self._ask({"runs": runs, "warm_up_ms": WARM_UP_MS}).get("nanoseconds")
        if times is None:
            raise BuildError(f"{self.label} died while it was timed: {self.error}")
        self.milliseconds += [time / 1e6 for time in times]
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return dict(json.loads(line))
        process.communicate()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["no message"]
        self.error = f"the process {describe_exit(process.returncode)}: {last[0]}"
        return {"error": self.error}
