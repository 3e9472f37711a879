"""Times the fastest candidates of each kernel in the model: the best of many is partly luck."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.preparation import Prepared
from tinsmith.compiler.tuning.acceptance import build
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.closing import Confirmation
from tinsmith.compiler.tuning.lookup import ChosenRecords
from tinsmith.compiler.tuning.records import Record, decisions_key
from tinsmith.compiler.tuning.runner import Runner
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.template import Decisions

# A kernel must gain that much when it is measured in the model.
_LEAST_GAIN = 0.015


def confirm(
    states: Sequence[TaskState],
    prepared: Prepared,
    before: Path,
    old: RecordLookup | None,
    runner: Runner,
    scratch: Path | None,
    extent: Confirmation,
) -> bool:
    """Set the winners of `states`; False if the fastest candidates crash together.

    `before` is the module without them, compiled with the records `old`; others are built in
    `scratch`, each with one of the fastest of every kernel: as many and timed as long as `extent`
    says.
    """
    ranked = {s.index: s.search.fastest(extent.candidates) for s in states if not s.abandoned}
    builds: list[dict[int, Decisions]] = [
        {index: fastest[place] for index, fastest in ranked.items() if place < len(fastest)}
        for place in range(extent.candidates)
    ]
    builds = [chosen for chosen in builds if chosen]
    by_index = {state.index: state for state in states}
    if not builds:
        return True
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        paths = [before]
        for number, chosen in enumerate(builds):
            records = [
                Record(by_index[index].task.subject, decisions, 1.0, 1.0)
                for index, decisions in chosen.items()
            ]
            path = Path(folder) / f"variant{number}"
            paths.append(build(prepared, ChosenRecords(records, old), path))
        steps = runner.step_seconds(paths, extent.seconds)
    if steps is None:
        return False
    times = [_by_kernel(own) for own in steps]
    for number, chosen in enumerate(builds, 1):
        for index, decisions in chosen.items():
            _consider(by_index[index], decisions, times[0], times[number])
    return True


def _by_kernel(steps: Sequence[StepTime]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for step in steps:
        totals[step.kernel] = totals.get(step.kernel, 0.0) + step.seconds
    return totals


def _consider(
    state: TaskState,
    decisions: Decisions,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> None:
    """Let `decisions` win if they beat what the kernel runs with, and no others do by more.

    The worse of the two ratios to the default counts, among candidates and in the model: either
    may be lucky.
    """
    names = state.task.name.split()
    now = state.record.ratio if state.record is not None else 1.0
    default = sum(before.get(name, 0.0) for name in names) / state.task.calls / now
    seconds = sum(after.get(name, 0.0) for name in names) / state.task.calls
    if not default > 0 or not seconds > 0:
        return
    ratio = max(seconds / default, state.search.tried[decisions_key(decisions)])
    state.ratio = min(now, ratio, *([] if state.ratio is None else [state.ratio]))
    if ratio <= (1 - _LEAST_GAIN) * now and (state.winner is None or ratio <= state.ratio):
        state.winner = (decisions, ratio * default, default)
