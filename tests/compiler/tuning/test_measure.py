"""The worker: what is measured, and candidates that do their worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.tuning.batch import Kernel
from tinsmith.compiler.tuning.measure import Limits, Measurer
from tinsmith.compiler.tuning.tasks import Task
from tinsmith.targets.registry import get_target

# What tests.compiler.tuning.misbehaving does for tiles of these widths.
SEGFAULTS, HANGS, EATS_MEMORY, IS_WRONG, CANNOT_BE_SCHEDULED, EXITS = range(101, 107)

SPEC = get_target("native")
LIMITS = Limits(seconds=20.0, memory_bytes=2 * 2**30)


@pytest.fixture
def convolution(small_tasks: tuple[Task, ...]) -> Task:
    return next(task for task in small_tasks if task.subject.template == "convolution")


def tile(rows: int, vectors: int = 1) -> dict[str, int]:
    return {"rows": rows, "vectors": vectors, "channels_outer": 0}


def test_candidates_get_times_and_share_code(convolution: Task) -> None:
    with Measurer([convolution.kernel], SPEC, LIMITS) as measurer:
        measured = measurer.measure(0, [convolution.default, tile(4), tile(4), tile(2)], 0.05)
        ledger = measurer.ledger
    assert all(outcome.seconds > 0 and not outcome.failure for outcome in measured.outcomes)
    assert measured.outcomes[0].seconds == measured.default_seconds[0]
    assert measured.outcomes[1] == measured.outcomes[2]
    assert ledger.build_seconds > 0 and ledger.run_seconds > 0 and ledger.crashes == 0


def test_bad_candidates_cost_themselves_only(
    convolution: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    limits = Limits(seconds=8.0, memory_bytes=3 * 2**30)
    with Measurer([convolution.kernel], SPEC, limits, ["misbehaving"]) as measurer:
        # Wrong numbers and failing schedules are found out without a crash.
        order = [tile(4), tile(4, IS_WRONG), tile(4, CANNOT_BE_SCHEDULED)]
        good, wrong, unscheduled = measurer.measure(0, order, 0.05).outcomes
        assert good.seconds > 0
        assert "something else than the default" in wrong.failure
        assert "no such tile" in unscheduled.failure
        (memory,) = measurer.measure(0, [tile(4, EATS_MEMORY)], 0.05).outcomes
        assert "memory" in memory.failure
        assert measurer.ledger.crashes == 1
        order = [tile(4, SEGFAULTS), tile(4), tile(4, EXITS)]
        crashed, good, ended = measurer.measure(0, order, 0.05).outcomes
        assert "SIGSEGV" in crashed.failure
        assert good.seconds > 0
        assert "code 0" in ended.failure
        (hung,) = measurer.measure(0, [tile(4, HANGS)], 0.05).outcomes
        assert "took longer than 8 s" in hung.failure
        assert measurer.measure(0, [tile(4)], 0.05).outcomes[0].seconds > 0


def test_a_default_that_fails_is_told(convolution: Task) -> None:
    shape_is_wrong = {0: np.zeros(1, np.float32)}
    kernel = Kernel(convolution.kernel.function, shape_is_wrong, 1, 0)
    with (
        Measurer([kernel], SPEC, LIMITS) as measurer,
        pytest.raises(BuildError, match="its default decisions fail"),
    ):
        measurer.default_seconds(0, 0.05)


def test_a_worker_that_does_not_start_is_told(convolution: Task) -> None:
    with (
        Measurer([convolution.kernel], SPEC, LIMITS, ["no_such_module"]) as measurer,
        pytest.raises(BuildError, match=r"does not start: .*no_such_module"),
    ):
        measurer.measure(0, [tile(4)], 0.05)


def test_a_killed_worker_is_replaced(convolution: Task) -> None:
    with Measurer([convolution.kernel], SPEC, LIMITS) as measurer:
        assert measurer.measure(0, [tile(4)], 0.05).outcomes[0].seconds > 0
        process = measurer._process
        assert process is not None
        process.kill()
        process.wait()
        first = measurer.measure(0, [tile(4), tile(2)], 0.05).outcomes
        assert all(outcome.seconds > 0 for outcome in first)
