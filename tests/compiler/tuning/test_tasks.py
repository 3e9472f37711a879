"""The kernels of a model as tasks, and which of them gets the next batch."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.tuning.allocation import BATCH, TaskState, next_task
from tinsmith.compiler.tuning.features import feature_matrix
from tinsmith.compiler.tuning.records import Trial, decisions_key
from tinsmith.compiler.tuning.search import Search
from tinsmith.compiler.tuning.tasks import Task, with_times


def test_tasks_know_what_the_model_calls_kernels_with(small_tasks: tuple[Task, ...]) -> None:
    convolutions = [task for task in small_tasks if task.subject.template == "convolution"]
    assert len(convolutions) == 2
    for task in convolutions:
        weights, bias = task.kernel.constants[1], task.kernel.constants[2]
        assert weights.dtype == bias.dtype == np.float32
        assert 0 not in task.kernel.constants
        assert task.kernel.outputs == 1
        assert task.kernel.resident_bytes >= weights.nbytes + bias.nbytes
        assert task.numbers["kernel_height"] == 3


def test_the_default_comes_first_and_nothing_twice(small_tasks: tuple[Task, ...]) -> None:
    for task in small_tasks:
        keys = [decisions_key(decisions) for decisions in task.space]
        assert keys[0] == decisions_key(task.default)
        assert len(set(keys)) == len(keys)


def test_workload_keys_are_those_of_other_processes(
    small_tasks: tuple[Task, ...], small_model_file: Path
) -> None:
    script = f"""
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.compiler.tuning.tasks import distinct_kernels
from tinsmith.targets.registry import get_target
spec = get_target("native")
report = lowering(spec).run(import_onnx({str(small_model_file)!r}, {{}}, {{}}).module)
print(*sorted(subject.workload for subject in distinct_kernels(report.fused, spec)))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == sorted(task.subject.workload for task in small_tasks)


def test_times_and_shares(small_tasks: tuple[Task, ...]) -> None:
    first, second = small_tasks[0], replace(small_tasks[1], name="one other")
    steps = [
        StepTime(0, "other", 3.0),
        StepTime(1, first.name, 1.0),
        StepTime(2, "one", 2.0),
        StepTime(3, "reshape", 3.0),
        StepTime(4, "the", 1.0),  # a part of a name is not the name
    ]
    slow, fast = with_times([first, second], steps)
    assert (slow.name, slow.calls, slow.seconds, slow.share) == ("one other", 2, 5.0, 0.5)
    assert (fast.calls, fast.seconds, fast.share) == (1, 1.0, 0.1)


def state(task: Task, seconds: float) -> TaskState:
    space = tuple({"rows": rows} for rows in range(1, 101))
    return TaskState(0, replace(task, seconds=seconds, share=seconds / 3), Search(space, {}))


def test_batches_go_where_time_is_and_gains_are(small_tasks: tuple[Task, ...]) -> None:
    def trial(rows: int, ratio: float) -> Trial:
        return Trial(small_tasks[0].subject, {"rows": rows}, ratio, 1.0)

    long, short = state(small_tasks[0], 2.0), state(small_tasks[0], 1.0)
    assert long.expected_gain > short.expected_gain
    long.add([trial(2, 1.2)] * BATCH)
    short.add([trial(2, 0.6)])
    assert short.expected_gain > long.expected_gain
    long.add([trial(4, 0.9999)])
    # A few candidates are no reason to give up, a batch is.
    assert not long.is_done(most_trials=100)
    long.add([trial(4, 0.9999)] * BATCH)
    assert long.is_done(most_trials=100)
    assert not short.is_done(most_trials=100)
    assert short.is_done(most_trials=1)
    assert short.row(100).ratio == 0.6
    # What takes little time is not worth another batch.
    assert replace(short, task=replace(short.task, share=5e-4)).is_done(most_trials=100)


def test_batches_that_take_long_must_save_more(small_tasks: tuple[Task, ...]) -> None:
    long, short = state(small_tasks[0], 2.0), state(small_tasks[0], 1.0)
    assert next_task([short, long]) is long
    long.batch_seconds = 3.0
    assert next_task([short, long]) is long
    short.batch_seconds = 1.0
    assert next_task([short, long]) is short


def test_failures_count_as_trials(small_tasks: tuple[Task, ...]) -> None:
    one = state(small_tasks[0], 1.0)
    one.add([Trial(small_tasks[0].subject, {"rows": 2}, failure="died of SIGSEGV")])
    assert (one.trials, one.failures) == (1, 1)
    assert one.search.tried[decisions_key({"rows": 2})] == math.inf
    assert one.row(10).ratio == 1.0


def test_features_of_one_template_have_one_width() -> None:
    candidates = [{"rows": 2, "vectors": 3}, {"rows": 4, "vectors": 1}]
    names, decided = ("channels", "pixels"), ("rows", "vectors")
    known = feature_matrix({"pixels": 49, "channels": 64}, names, decided, candidates)
    other = feature_matrix({"pixels": 196}, names, decided, [{"rows": 2}])
    assert known.shape == (2, other.shape[1])
    assert np.isfinite(known).all()
    assert not np.array_equal(known[0], known[1])
