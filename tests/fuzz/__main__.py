"""The driver: mutants made, tried in nurseries, counted; what failed is kept.

    python -m tests.fuzz --mutants 10000 --seed 1 --stage import --jobs 2 --out fuzz-out

A run that was broken off goes on where it was: the same command reads `results.jsonl` in `--out`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.models import Sample, samples
from tests.fuzz.mutations import mutant
from tests.fuzz.nursery import STAGES

FAILURES = ("crash", "hang", "memory", "internal", "raw", "wrong")
_SECONDS = {"import": 10, "compile": 30}


class Nursery:
    """The parent's side of `tests.fuzz.nursery`. A context manager."""

    def __enter__(self) -> Nursery:
        self._process = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, path: Path, stage: str, seconds: float) -> dict[str, Any]:
        """What becomes of a file: see `tests.fuzz.nursery`."""
        order = {"path": str(path), "stage": stage, "seconds": seconds}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery itself has died")
        return dict(json.loads(line))

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the nursery does not start")
        return process


def write_sample(sample: Sample, folder: Path, name: str = "model.onnx") -> Path:
    """Put a sample into a folder of its own; the path of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for beside, content in sample.beside.items():
        (folder / beside).write_bytes(content)
    path = folder / name
    path.write_bytes(sample.model)
    return path


def node_tests() -> dict[str, Sample]:
    """The models of the onnx package's own node tests."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {
        case.name: Sample(case.model.SerializeToString())
        for case in cases
        if case.model is not None and case.model.ByteSize() < 50_000
    }


def make(
    number: int, seed: int, originals: dict[str, Sample], own: list[str]
) -> tuple[str, Sample]:
    """The mutant of that number, and the name of what it was made of."""
    generator = Random(f"{seed}/{number}")
    names = sorted(originals)
    # Half of the mutants begin with our own models, which have several nodes.
    name = generator.choice(own if generator.random() < 0.5 else names)
    return name, mutant(originals[name], [originals[n] for n in generator.sample(names, 3)],
                        generator)  # fmt: skip


def main() -> int:
    """Run the campaign; 1 if any mutant failed."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz")
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", choices=STAGES, default="import")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="processor seconds a mutant may take")
    parser.add_argument("--own", action="store_true", help="begin with our own models only")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    options = parser.parse_args()
    originals = samples()
    own = sorted(originals)
    if not options.own:
        originals = {**node_tests(), **originals}
    seconds = options.seconds or _SECONDS[options.stage]
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"results-{options.stage}-{options.seed}.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    results = {entry["number"]: entry for entry in map(json.loads, lines)}
    left = iter([number for number in range(options.mutants) if number not in results])
    lock = threading.Lock()

    def work(lane: int) -> None:
        with Nursery() as nursery, log.open("a") as stream:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                name, sample = make(number, options.seed, originals, own)
                path = write_sample(
                    sample, options.out / f"{options.stage}-{options.seed}-lane{lane}"
                )
                entry = {"number": number, "of": name, **nursery.ask(path, options.stage, seconds)}
                if entry["outcome"] in FAILURES:
                    kept = (
                        options.out / entry["outcome"] / f"{options.stage}-{options.seed}-{number}"
                    )
                    write_sample(sample, kept)
                with lock:
                    results[number] = entry
                    stream.write(json.dumps(entry) + "\n")
                    stream.flush()
                    if len(results) % 100 == 0:
                        print(_line(results), flush=True)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(_line(results))
    worst = sorted(results.values(), key=lambda entry: -entry["seconds"])[:3]
    for entry in worst:
        print(f"slowest: {entry['number']} of {entry['of']}: {entry['seconds']:.1f} s of processor")
    summary = {
        "stage": options.stage,
        "seed": options.seed,
        "mutants": len(results),
        "outcomes": dict(Counter(entry["outcome"] for entry in results.values())),
        "most_seconds": max(entry["seconds"] for entry in results.values()),
        "most_memory": max(entry["memory"] for entry in results.values()),
    }
    (options.out / f"summary-{options.stage}-{options.seed}.json").write_text(
        json.dumps(summary, indent=2) + "\n"
    )
    return int(any(entry["outcome"] in FAILURES for entry in results.values()))


def _line(results: dict[int, dict[str, Any]]) -> str:
    outcomes = Counter(entry["outcome"] for entry in results.values())
    told = ", ".join(f"{outcomes[name]} {name}" for name in ("good", "refused", *FAILURES))
    return f"{len(results)} mutants: {told}"


if __name__ == "__main__":
    sys.exit(main())
