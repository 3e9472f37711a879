"""The end of a job: new records are kept if they make the whole model faster.

A kernel that is faster alone may not be in the model, where its neighbours leave
other data in the caches. So the module with the new records and the one with
those before take turns, in processes of their own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.compiler.pipeline import SCHEDULE, lowering
from tinsmith.compiler.preparation import Prepared
from tinsmith.compiler.tuning.lookup import ChosenRecords
from tinsmith.compiler.tuning.records import Record
from tinsmith.compiler.tuning.runner import Runner
from tinsmith.targets.schedule import RecordLookup


@dataclass(frozen=True)
class Verdict:
    """The records that are kept, and the medians of the model without and with them.

    Unless `is_complete` time ran out before all was compared: what is not kept may still help.
    """

    kept: tuple[Record, ...]
    before_ms: float = 0.0
    after_ms: float = 0.0
    notes: tuple[str, ...] = ()
    is_complete: bool = True


def accept(
    prepared: Prepared,
    before: Path,
    new: Sequence[Record],
    old: RecordLookup | None,
    runner: Runner,
    deadline: float,
    scratch: Path | None = None,
    even_none: bool = False,
) -> Verdict:
    """Which of `new`, the most valuable first, make the model faster than the module `before`.

    If all of them together do not, the less valuable half is dropped, until the rest does or
    none is left; with `even_none` the model is also tried without them, because it has other
    algorithms than `before`. `old` are the records that `before` was compiled with; modules are
    built in a folder inside `scratch`. No further attempt begins that would not be over at
    `deadline`, by `time.monotonic()`.
    """
    chosen = tuple(new)
    notes: list[str] = []
    attempts = [chosen] if chosen or even_none else []
    while attempts:
        chosen = attempts.pop()
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tinsmith-tuned-", dir=scratch) as folder:
            after = build(prepared, ChosenRecords(chosen, old), Path(folder) / "module")
            told = "the model crashes, or its results differ from the reference"
            if runner.agrees(after):
                try:
                    left = deadline - time.monotonic()
                    before_ms, after_ms = runner.race(before, after, left)
                except BuildError as error:
                    told = str(error)
                else:
                    if after_ms < before_ms:
                        return Verdict(chosen, before_ms, after_ms, tuple(notes))
                    told = f"{after_ms:.3f} ms instead of {before_ms:.3f} ms for the whole model"
        notes.append(f"{len(chosen)} new records together do not help: {told}")
        if len(chosen) > 1 or (chosen and even_none):
            now = time.monotonic()
            if now + (now - begin) <= deadline:
                attempts.append(chosen[: len(chosen) // 2])
            else:
                notes.append("time is up: whether a part of them helps is for the next job")
                return Verdict((), notes=tuple(notes), is_complete=False)
    return Verdict((), notes=tuple(notes))


def build(prepared: Prepared, records: RecordLookup | None, folder: Path) -> Path:
    """The prepared model, scheduled with `records`, as a module in `folder`."""
    schedule = lowering(prepared.lowered.spec, records).since(SCHEDULE)
    report = schedule.run(prepared.pipeline.fused)
    lowered = replace(prepared.lowered, module=report.module, kernels=report.kernels)
    return write_module(
        lowered, folder, golden=prepared.golden, forms=("shared",), builds=prepared.builds
    ).path
