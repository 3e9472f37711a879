"""How good the search is: XGBoost-guided against random, at equal trials of each kernel.

    python benchmarks/search.py measure TABLE.json [--models resnet18 ...] [--most 384]
    python benchmarks/search.py replay TABLE.json [--trials 64] [--seeds 20]
    python benchmarks/search.py live FOUND.json [--models mobilenetv2] [--seeds 3]
    python benchmarks/search.py judge FOUND.json [--models mobilenetv2]

`measure` times a random part of the space of the slowest kernels whose spaces are large; what is
in the file already is not measured again. `replay` lets both strategies search that part, with the
times of the table as answers: that is exact, and the same for every seed. `live` lets both search
whole spaces on this machine and writes down what they found; what is in the file already is not
searched again, so that it can be run in parts (`--strategies model --seeds 1`). `judge` then
times the three fastest that each has found side by side, and the default counts where they are
slower, as at the end of a job. Each search goes as a job's would: batch by batch, kernels
in turn, with what was learnt of one kernel at the service of the next. The figure is the geometric
mean, over kernels and seeds, of the best time found relative to the template's default. Exit
status 1 if the guided search does not win.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from latency import find
from zoo import CACHE

from tinsmith import CompileConfig, QuantizationConfig
from tinsmith.compiler.preparation import Clock, Prepared, prepare, target_of
from tinsmith.compiler.tuning.acceptance import build
from tinsmith.compiler.tuning.allocation import BATCH, TaskState
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.learning import Lessons
from tinsmith.compiler.tuning.measure import Measurer
from tinsmith.compiler.tuning.records import Subject, Trial, decisions_key
from tinsmith.compiler.tuning.search import STRATEGIES, Search
from tinsmith.compiler.tuning.tasks import Task, distinct_kernels, with_times
from tinsmith.compiler.tuning.variants import step_seconds
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

Table = dict[str, dict[str, Any]]
# Model, strategy with seed, workload: the fastest candidates.
Found = dict[str, dict[str, dict[str, list[dict[str, int]]]]]
# How many of the fastest are timed again, as in a job.
_CONFIRMED = 3
Answer = Callable[[int, Sequence[Decisions]], Sequence[float | None]]


def slowest(prepared: Prepared, spec: TargetSpec, least: int, count: int) -> list[Task]:
    """The `count` kernels with the most time among those with `least` candidates."""
    tasks = distinct_kernels(prepared.pipeline.fused, spec)
    with tempfile.TemporaryDirectory() as folder:
        module = build(prepared, None, Path(folder) / "module")
        steps = step_seconds([module], spec.cores, 1.0)
    if steps is None:
        raise SystemExit(f"{prepared.lowered.source_name} crashes")
    timed = with_times([task for task in tasks.values() if len(task.space) >= least], steps[0])
    return timed[:count]


def described(task: Task, model: str) -> dict[str, Any]:
    """The entry of a kernel of which nothing is measured yet."""
    return {
        "model": model,
        "template": task.subject.template,
        "kernel": task.name,
        "numbers": task.numbers,
        "default": dict(task.default),
        "space": len(task.space),
        "candidates": [],
    }


def measured(
    task: Task, spec: TargetSpec, done: int, most: int, seconds: float
) -> Iterator[list[dict[str, Any]]]:
    """Times of a random part of the task's space, relative to the default, batch by batch.

    `done` candidates of that part are left out.
    """
    order = 1 + np.random.default_rng(0).permutation(len(task.space) - 1)
    chosen = [task.space[int(i)] for i in order[:most]]
    with Measurer([task.kernel], spec) as measurer:
        for begin in range(done, len(chosen), BATCH):
            batch = chosen[begin : begin + BATCH]
            result = measurer.measure(0, batch, seconds)
            yield [
                {"decisions": dict(d), "ratio": None if o.failure else o.seconds / default}
                for d, o, default in zip(
                    batch, result.outcomes, result.default_seconds, strict=True
                )
            ]


def chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Task], TargetSpec]]:
    """The models with their slowest kernels of large spaces."""
    quantization = None
    if arguments.quantize:
        quantization = QuantizationConfig(format=arguments.quantize, calibration="random")
    for name, (model, shapes) in find(arguments.cache).items():
        if name not in arguments.models:
            continue
        config = CompileConfig(shapes=shapes, quantization=quantization)
        spec = target_of(config)
        prepared = prepare(model, config, spec, Clock(None), None, reported=False)
        yield name, slowest(prepared, spec, arguments.least, arguments.kernels), spec


def measure(arguments: argparse.Namespace) -> None:
    """Add kernels to the table."""
    table: Table = read(arguments.table)
    for name, tasks, spec in chosen(arguments):
        for task in tasks:
            entry = table.setdefault(task.subject.workload, described(task, name))
            found = entry["candidates"]
            for batch in measured(task, spec, len(found), arguments.most, arguments.seconds):
                found += batch
                arguments.table.write_text(json.dumps(table) + "\n")
            print(f"{name} {task.name}: {len(found)} of {len(task.space)} candidates", flush=True)


def search(
    tasks: Sequence[Task],
    strategy: str,
    trials: int,
    seed: int,
    learner: Learner,
    answer: Answer,
) -> list[TaskState]:
    """What a job finds with so many trials of each kernel; `answer` gives ratios, by task."""
    states = [
        TaskState(i, task, Search(task.space, task.numbers, 1000 * seed + i, strategy))
        for i, task in enumerate(tasks)
    ]
    lessons = Lessons(states, learner, seed)
    for _ in range(math.ceil(trials / BATCH)):
        for state in states:
            subject = state.task.subject
            count = min(BATCH, trials - state.trials)
            proposed = state.search.propose(count, lessons.model(subject.template))
            state.add(
                [
                    Trial(subject, decisions, failure="failed")
                    if ratio is None
                    else Trial(subject, decisions, ratio, 1.0)
                    for decisions, ratio in zip(
                        proposed, answer(state.index, proposed), strict=True
                    )
                ]
            )
            if strategy == "model":
                lessons.learn(subject.template)
    return states


def replay(table: Table, strategy: str, trials: int, seed: int, learner: Learner) -> list[float]:
    """The best ratio of each kernel of the table after so many trials of it."""
    known = [
        {decisions_key(c["decisions"]): c["ratio"] for c in entry["candidates"]}
        for entry in table.values()
    ]
    kernel: Any = None  # Nothing is run.
    tasks = [
        Task(
            entry["kernel"],
            Subject(entry["template"], 1, workload),
            kernel,
            entry["default"],
            (entry["default"], *(c["decisions"] for c in entry["candidates"])),
            entry["numbers"],
        )
        for workload, entry in table.items()
    ]

    def answer(index: int, proposed: Sequence[Decisions]) -> list[float | None]:
        return [known[index][decisions_key(decisions)] for decisions in proposed]

    states = search(tasks, strategy, trials, seed, learner, answer)
    return [state.search.best[1] for state in states]


def timed(measurer: Measurer, seconds: float) -> Answer:
    """Answers with measurements on this machine."""

    def answer(index: int, proposed: Sequence[Decisions]) -> list[float | None]:
        result = measurer.measure(index, proposed, seconds)
        pairs = zip(result.outcomes, result.default_seconds, strict=True)
        return [None if o.failure else o.seconds / default for o, default in pairs]

    return answer


def live(arguments: argparse.Namespace) -> None:
    """Add to the file what each strategy finds with each seed on this machine."""
    found: Found = read(arguments.table)
    for name, tasks, spec in chosen(arguments):
        with Measurer([task.kernel for task in tasks], spec) as measurer, Learner() as learner:
            for seed, strategy in itertools.product(range(arguments.seeds), arguments.strategies):
                if f"{strategy} {seed}" in found.get(name, {}):
                    continue
                answer = timed(measurer, arguments.seconds)
                states = search(tasks, strategy, arguments.trials, seed, learner, answer)
                found.setdefault(name, {})[f"{strategy} {seed}"] = {
                    state.task.subject.workload: [dict(d) for d in state.search.fastest(_CONFIRMED)]
                    for state in states
                }
                arguments.table.write_text(json.dumps(found) + "\n")
                print(f"{name}: {strategy}, seed {seed}: {len(states)} kernels", flush=True)


def judge(arguments: argparse.Namespace) -> bool:
    """Time side by side what the searches of the file found; whether the guided one wins."""
    found: Found = read(arguments.table)
    logarithms: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    for name, tasks, spec in chosen(arguments):
        with Measurer([task.kernel for task in tasks], spec) as measurer:
            for index, task in enumerate(tasks):
                print(f"{name} {task.name}, {len(task.space)} candidates", flush=True)
                workload = task.subject.workload
                listed = [d for best in found[name].values() for d in best.get(workload, [])]
                ratios = timed(measurer, 4 * arguments.seconds)(index, listed)
                known = dict(zip(map(decisions_key, listed), ratios, strict=True))
                for run, best in found[name].items():
                    if workload in best:
                        own = [known[decisions_key(d)] or 1.0 for d in best[workload]]
                        least = min([1.0, *own])
                        logarithms[run.split()[0]].append(math.log(least))
                        print(f"  {run}: {least:.4f}", flush=True)
    means = {strategy: math.exp(float(np.mean(v))) for strategy, v in logarithms.items()}
    print(f"geometric means: model {means['model']:.4f}, random {means['random']:.4f}")
    return means["model"] < means["random"]


def read(path: Path) -> dict[str, Any]:
    """The content of a file that may not be there yet."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def compare(table: Table, trials: int, seeds: int) -> bool:
    """Print what either strategy finds; whether the guided search wins."""
    with Learner() as learner:
        found = {
            strategy: np.array(
                [replay(table, strategy, trials, seed, learner) for seed in range(seeds)]
            )
            for strategy in STRATEGIES
        }
    optimum = [
        min([1.0, *(c["ratio"] for c in entry["candidates"] if c["ratio"])])
        for entry in table.values()
    ]
    print(f"{'kernel':34}{'space':>7}{'table':>7}{'model':>9}{'random':>9}{'optimum':>9}")
    means = {s: np.exp(np.log(v).mean(axis=0)) for s, v in found.items()}
    for i, entry in enumerate(table.values()):
        name = f"{entry['model']} {entry['template']}"
        print(
            f"{name:34}{entry['space']:>7}{len(entry['candidates']):>7}"
            f"{means['model'][i]:>9.4f}{means['random'][i]:>9.4f}{optimum[i]:>9.4f}"
        )
    whole = {s: float(np.exp(np.log(v).mean())) for s, v in found.items()}
    wins = int((np.log(found["model"]).mean(1) < np.log(found["random"]).mean(1)).sum())
    print(
        f"geometric means after {trials} trials: model {whole['model']:.4f}, random "
        f"{whole['random']:.4f}, optimum {np.exp(np.log(optimum).mean()):.4f}; the model wins "
        f"with {wins} of {seeds} seeds"
    )
    return whole["model"] < whole["random"]


def main() -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("measure", "replay", "live", "judge"))
    parser.add_argument("table", type=Path, help="TABLE.json, or FOUND.json of `live`")
    parser.add_argument("--models", nargs="*", default=["resnet18", "mobilenetv2", "minilm-l3"])
    parser.add_argument("--quantize", help="int8: kernels of the quantised models")
    parser.add_argument("--kernels", type=int, default=3, help="of each model")
    parser.add_argument("--least", type=int, default=128, help="candidates that a space must have")
    parser.add_argument("--most", type=int, default=384, help="candidates to measure")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for a batch")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    if arguments.command == "judge":
        return 0 if judge(arguments) else 1
    if arguments.command in ("measure", "live"):
        measure(arguments) if arguments.command == "measure" else live(arguments)
        return 0
    table = {
        workload: entry
        for workload, entry in json.loads(arguments.table.read_text()).items()
        if len(entry["candidates"]) > arguments.trials
    }
    return 0 if compare(table, arguments.trials, arguments.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
