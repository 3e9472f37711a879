"""Which kernels a job searches, and why it leaves others alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.learning import Tried
from tinsmith.compiler.tuning.lookup import StoredRecords
from tinsmith.compiler.tuning.records import Record, Subject
from tinsmith.compiler.tuning.report import HAS_RECORD, TuneOptions
from tinsmith.compiler.tuning.search import Search
from tinsmith.compiler.tuning.tasks import LEAST_SHARE, Task


@dataclass(frozen=True)
class Selection:
    """The states of the kernels that are searched; the names of others, with reasons.

    `unfit` is how many records have decisions that the template does not have.
    """

    states: tuple[TaskState, ...]
    left_alone: tuple[tuple[str, str], ...]
    unfit: int = 0


def select(
    tasks: Sequence[Task],
    options: TuneOptions,
    records: StoredRecords,
    trials: Tried,
    near: Sequence[dict[Subject, Record]],
) -> Selection:
    """Choose among `tasks`, the most valuable first.

    `records` are those that compilations use, `trials` what was measured here before, and
    `near` the records of near machines.
    """
    states: list[TaskState] = []
    left_alone: list[tuple[str, str]] = []
    unfit = 0
    for task in tasks:
        known = None if options.fresh else records.record(task.subject)
        if known is not None and not task.fits(known.decisions):
            # No compilation applies it either.
            known, unfit = None, unfit + 1
        if known is not None and not known.is_early and not options.resume:
            left_alone.append((task.name, HAS_RECORD))
        elif task.share < LEAST_SHARE:
            left_alone.append((task.name, f"takes {task.share:.2%} of the time"))
        elif options.tasks and len(states) >= options.tasks:
            left_alone.append((task.name, f"--tasks {options.tasks}"))
        else:
            tried = {key: t.ratio for key, t in trials.get(task.subject, {}).items()}
            starts = [known] if known is not None else []
            starts += [layer[task.subject] for layer in near if task.subject in layer]
            index = len(states)
            search = Search(
                task.space,
                task.numbers,
                options.seed + index,
                options.strategy,
                [record.decisions for record in starts],
                tried,
            )
            states.append(TaskState(index, task, search, len(tried) - 1, known))
    return Selection(tuple(states), tuple(left_alone), unfit)
