"""Which algorithm computes each convolution best: measured in the model, and remembered.

The model is lowered once with each algorithm everywhere. What an algorithm costs is what its
kernels take in that variant of the model: epilogues are fused into all of them alike, and the
weights, which Winograd's algorithm makes larger, come from where they will come from. Where
several are near each other with the decisions at hand, those of all are searched, and the
fastest of each are timed in the variants again.

A choice is remembered as a record like any other, for the template `algorithm`, with the
direct convolution as its workload and the side of the output tile as its one decision.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinsmith.compiler.preparation import Prepared
from tinsmith.compiler.tuning.acceptance import build
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.lookup import ChosenRecords, StoredRecords
from tinsmith.compiler.tuning.records import ALGORITHM, Record, Subject
from tinsmith.compiler.tuning.runner import Runner
from tinsmith.compiler.tuning.tasks import LEAST_SHARE, Task, distinct_kernels, with_times
from tinsmith.targets.algorithms import DIRECT, AlgorithmLookup
from tinsmith.targets.registry import backend_of
from tinsmith.targets.schedule import RecordLookup, match_template
from tinsmith.targets.spec import TargetSpec

# An algorithm that takes this much longer than the best, untuned, is not searched.
_NEAR = 1.35
# What another algorithm than the rule's must gain.
_LEAST_GAIN = 0.02
_SECONDS = 4.0

Seconds = dict[Hashable, dict[str, float]]


def algorithm_subject(workload: Any, spec: TargetSpec) -> Subject:
    """What the algorithm of a convolution is remembered by; `workload` is the direct one's."""
    content = json.dumps(asdict(workload), sort_keys=True).encode()
    return Subject(
        ALGORITHM, backend_of(spec).algorithms.version, hashlib.sha256(content).hexdigest()[:16]
    )


class StoredAlgorithms:
    """The `AlgorithmLookup` of records; without `records` it knows nothing.

    `asked` are the convolutions it was asked for, with its answers.
    """

    def __init__(self, records: StoredRecords | None = None) -> None:
        self._records = records
        self.asked: dict[Hashable, str | None] = {}

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        """The algorithm of the first record for this convolution and version.

        Few channels leave no choice: the rule computes them directly.
        """
        algorithms = backend_of(spec).algorithms
        if not algorithms.have_choice(workload):
            return None
        record = None
        if self._records is not None:
            record = self._records.record(algorithm_subject(workload, spec))
        names = {code: name for name, code in algorithms.codes.items()}
        known = record is not None and set(record.decisions) == {"tile"}
        self.asked[workload] = names.get(record.decisions["tile"]) if record and known else None
        return self.asked[workload]

    def coverage(self) -> str:
        """How many convolutions have records, of those that several algorithms can compute."""
        found = sum(answer is not None for answer in self.asked.values())
        return f"{found} of {len(self.asked)} convolution algorithms from records"

    def switched_on(self) -> int:
        """How many convolutions use another than the direct algorithm because of a record."""
        return sum(answer not in (None, DIRECT) for answer in self.asked.values())


class ChosenAlgorithms:
    """The `AlgorithmLookup` of given choices; `otherwise` knows of other convolutions."""

    def __init__(self, chosen: Mapping[Hashable, str], otherwise: AlgorithmLookup) -> None:
        self._chosen, self._otherwise = chosen, otherwise

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        """The choice for this convolution."""
        return self._chosen.get(workload) or self._otherwise.find(workload, spec)


def algorithm_of(task: Task, spec: TargetSpec) -> tuple[Hashable, str] | None:
    """The convolution that a kernel computes, as the direct algorithm has it, and by which."""
    workload = match_template(task.kernel.function, spec)[1].workload
    return backend_of(spec).algorithms.computed_by(workload)


@dataclass(frozen=True)
class Choice:
    """The algorithms that are best. `prepared` is the model with them.

    `records` remember them, `rejected` what the rule says instead: for when the whole model
    does not become faster. `is_new` tells whether they differ from the rule's.
    """

    prepared: Prepared
    records: tuple[Record, ...] = ()
    rejected: tuple[Record, ...] = ()
    is_new: bool = False

    @property
    def told(self) -> tuple[str, ...]:
        """A line for each convolution that is computed by another algorithm than the rule's."""
        return tuple(
            f"{new.provenance['kernel']}: {new.provenance['algorithm']} instead of "
            f"{old.provenance['algorithm']}, {new.ratio:.2f} of its time in the model"
            for new, old in zip(self.records, self.rejected, strict=True)
            if new.decisions != old.decisions
        )


@dataclass(frozen=True)
class _Variant:
    """The model with one algorithm wherever it is possible."""

    prepared: Prepared
    tasks: tuple[Task, ...]


class AlgorithmSearch:
    """The choice of algorithms for the convolutions of one model that have no record.

    `lower` prepares the model with given algorithms, and `rule` is the model as they are
    without records; `old` are the decisions of earlier searches. Modules are put
    into `scratch` and timed by `runner`.
    """

    def __init__(
        self,
        rule: Prepared,
        known: StoredAlgorithms,
        lower: Callable[[AlgorithmLookup], Prepared],
        old: RecordLookup | None,
        runner: Runner,
        scratch: Path | None,
    ) -> None:
        self._rule, self._known, self._lower, self._old = rule, known, lower, old
        self._runner, self._scratch = runner, scratch
        self._spec = rule.lowered.spec
        self._variants: dict[str, _Variant] = {}
        self._seconds: Seconds = {}
        self._open = {w for w, answer in known.asked.items() if answer is None}

    def restrict(self, tasks: Iterable[Task]) -> bool:
        """Leave convolutions open only if they matter among `tasks`; whether any is left."""
        matter = {
            found[0]
            for task in tasks
            if task.share >= LEAST_SHARE
            for found in [algorithm_of(task, self._spec)]
            if found is not None
        }
        self._open &= matter
        return bool(self._open)

    def measure(self) -> bool:
        """Lower and time the model with each algorithm; False if it crashes."""
        for name in backend_of(self._spec).algorithms.codes:
            chosen = ChosenAlgorithms(dict.fromkeys(self._open, name), self._known)
            prepared = self._lower(chosen)
            kernels = distinct_kernels(prepared.pipeline.fused, self._spec)
            self._variants[name] = _Variant(prepared, tuple(kernels.values()))
        return self._time(self._old)

    def contenders(self) -> list[Task]:
        """The kernels to search: those of algorithms that are near the best of a convolution."""
        tasks = []
        for name, variant in self._variants.items():
            for task in variant.tasks:
                found = algorithm_of(task, self._spec)
                if found is None or found[0] not in self._open or found[1] != name:
                    continue
                seconds = self._seconds[found[0]]
                most = min(seconds.values()) * _NEAR
                if seconds[name] <= most and sorted(seconds.values())[1] <= most:
                    tasks.append(task)
        return sorted(tasks, key=lambda task: -task.seconds)

    def decide(self, states: Sequence[TaskState], provenance: Mapping[str, str]) -> Choice:
        """The best algorithms, each with the decisions that the searches found."""
        best = [(s.task.subject, *s.search.best) for s in states if not s.abandoned]
        faster = [Record(subject, found, ratio, 1.0) for subject, found, ratio in best if ratio < 1]
        if faster:
            self._time(ChosenRecords(faster, self._old))
        kernels = distinct_kernels(self._rule.pipeline.fused, self._spec).values()
        current = dict(filter(None, (algorithm_of(task, self._spec) for task in kernels)))
        chosen: dict[Hashable, str] = {}
        records: list[Record] = []
        rejected: list[Record] = []
        trials = sum(state.trials + state.known for state in states)
        algorithms = backend_of(self._spec).algorithms
        for workload, seconds in self._seconds.items():
            ours = current[workload]
            name = min(seconds, key=lambda n: seconds[n])
            if seconds[name] > (1 - _LEAST_GAIN) * seconds[ours]:
                name = ours
            chosen[workload] = name
            for which, found in ((name, records), (ours, rejected)):
                told = {**provenance, "kernel": algorithms.described(workload), "algorithm": which}
                decisions = {"tile": algorithms.codes[which]}
                subject = algorithm_subject(workload, self._spec)
                times = seconds[which], seconds[ours]
                found.append(Record(subject, decisions, *times, trials, told))
        is_new = any(name != current[workload] for workload, name in chosen.items())
        prepared = self._rule
        if is_new:
            prepared = self._lower(ChosenAlgorithms(chosen, self._known))
        return Choice(prepared, tuple(records), tuple(rejected), is_new)

    def _time(self, records: RecordLookup | None) -> bool:
        """Time the variants with `records`; the least seconds of each algorithm count."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            paths = [
                build(variant.prepared, records, Path(folder) / name)
                for name, variant in self._variants.items()
            ]
            steps = self._runner.step_seconds(paths, _SECONDS)
        if steps is None:
            return False
        for (name, variant), own in zip(self._variants.items(), steps, strict=True):
            tasks = tuple(with_times(variant.tasks, own))
            self._variants[name] = replace(variant, tasks=tasks)
            totals: dict[Hashable, float] = {}
            for task in tasks:
                found = algorithm_of(task, self._spec)
                if found is not None and found[0] in self._open:
                    totals[found[0]] = totals.get(found[0], 0.0) + task.seconds
            for workload, seconds in totals.items():
                known = self._seconds.setdefault(workload, {})
                known[name] = min(seconds, known.get(name, seconds))
        return True
