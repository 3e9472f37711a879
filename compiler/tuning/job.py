"""A tuning job: profile, search, measure, confirm, compare the whole model, remember.

Everything that is measured is on the disk before the next batch begins, so that
a job that was killed goes on where it was: the same command measures what is not
in the log. Early records are written as soon as a kernel is faster in the model; those that
count at the end, when the whole model has become faster. A kernel whose search found nothing
gets a record of its default, so that no job searches it again.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import BuildError, ConfigError, TargetError
from tinsmith.compiler.frontends.frontend import ModelSource
from tinsmith.compiler.frontends.registry import frontend_of
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.preparation import Clock, Prepared, model_name, prepare, target_of
from tinsmith.compiler.tuning.acceptance import Verdict, accept, build
from tinsmith.compiler.tuning.algorithms import AlgorithmSearch, Choice, StoredAlgorithms
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.boards.runner import BoardRunner
from tinsmith.compiler.tuning.boards.tracker import Tracker
from tinsmith.compiler.tuning.closing import Confirmation, confirmation, seconds_to_reserve
from tinsmith.compiler.tuning.confirmation import confirm
from tinsmith.compiler.tuning.early_records import EarlyRecords
from tinsmith.compiler.tuning.folders import user_folder
from tinsmith.compiler.tuning.identity import job_digest
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.learning import Lessons
from tinsmith.compiler.tuning.lookup import StoredRecords, standing_stores, told_of_ignored
from tinsmith.compiler.tuning.measure import Ledger
from tinsmith.compiler.tuning.record_maker import RecordMaker
from tinsmith.compiler.tuning.records import Subject
from tinsmith.compiler.tuning.report import JobView, TuneOptions, TuneReport
from tinsmith.compiler.tuning.runner import LocalRunner, NoDeviceError, Runner
from tinsmith.compiler.tuning.selection import select
from tinsmith.compiler.tuning.store import Shelf, Store
from tinsmith.compiler.tuning.tasks import Task, distinct_kernels, with_times
from tinsmith.compiler.tuning.trials import TrialLoop
from tinsmith.compiler.words import config_of
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.spec import TargetSpec

JobProgress = Callable[[JobView], None]

# The search among algorithms ends when that share of the job's time is over.
_ALGORITHMS_SHARE = 0.4
# Seconds of the first profile of the model.
_PROFILE_SECONDS = 1.5
_BORROWED_LONGER_SECONDS = 1800


def tune(
    model: ModelSource,
    target: str | None = None,
    *,
    config: CompileConfig | None = None,
    options: TuneOptions | None = None,
    progress: JobProgress | None = None,
    **words: Any,
) -> TuneReport:
    """Search the decisions of a model's kernels where they run, and remember the best.

        tinsmith.tune("resnet50.onnx", minutes=10, shapes={"input": (1, 3, 224, 224)})

    model, target: as for `tinsmith.compile`, which uses what was found from then on.
    config: how the model is compiled, as one object.
    options: how long and where to search, on this machine or on boards, as one object.
    progress: called with a JobView, the state of the job, whenever that changes.
    words: fields of TuneOptions (`minutes`, `trials`, `rpc`, `key`, ...), and what
        `tinsmith.compile` takes (`shapes`, `threads`, `quantize`, `calibration`, ...); they win
        over `config` and `options`.

    A job that is interrupted loses nothing: the same call goes on.

    Raises a subclass of TinsmithError: as `tinsmith.compile` does, TargetError for a target that
    is not this machine, for boards that cannot be used and when all are lost, ConfigError for a
    folder that is no tuning log, is in use by another job, or for a model without a kernel that
    leaves anything to decide.
    """
    searching = {item.name for item in fields(TuneOptions)}
    chosen = {name: words.pop(name) for name in searching & words.keys()}
    if chosen.get("log") is not None:
        chosen["log"] = Path(chosen["log"])
    options = replace(options or TuneOptions(), **chosen)
    config = config_of(words | ({} if target is None else {"target": target}), config)
    # The kernels of a range are those of its largest size.
    config = config.at_bound()
    spec = target_of(config)
    threads = config.threads or spec.cores
    store = Store(options.log or user_folder())
    others, unread = standing_stores()
    with _runner(config.target, spec, threads, options) as runner:
        shelf = store.shelf_to_write(spec)
        with shelf.exclusive(), Learner() as learner:
            records = StoredRecords([store, *others], spec)
            job = _Job(model, config, options, progress, store, shelf, records, runner, learner)
            job.notes += unread
            return job.run()


def _runner(
    target: str, spec: TargetSpec, threads: int, options: TuneOptions
) -> AbstractContextManager[Runner]:
    """Where the job measures. Raises TargetError if it cannot."""
    if options.rpc is not None and options.key is not None:
        # Searching takes the time that is asked for; lowering and comparing take more.
        seconds = int(options.minutes * 60) + _BORROWED_LONGER_SECONDS
        return BoardRunner(Tracker.parse(options.rpc), options.key, spec, threads, seconds)
    if not Host.at_hand().makes(spec):
        raise TargetError(
            f"target {target}: candidates are measured on this machine, which is another; run the "
            "job there, take --target native, or measure on boards with --rpc HOST:PORT --key NAME"
        )
    return nullcontext(LocalRunner(spec, threads))


class _Job:
    def __init__(
        self,
        model: ModelSource,
        config: CompileConfig,
        options: TuneOptions,
        progress: JobProgress | None,
        store: Store,
        shelf: Shelf,
        records: StoredRecords,
        runner: Runner,
        learner: Learner,
    ) -> None:
        self.begin = time.monotonic()
        self.model, self.config, self.options = model, config, options
        self.store, self.shelf, self.records = store, shelf, records
        self.spec = target_of(config)
        self.runner = runner
        self.old = None if options.fresh else records
        self.scratch: Path | None = None
        self.deadline = self.begin + options.minutes * 60
        self.states: list[TaskState] = []
        self.left_alone: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.ledger = Ledger()
        self._seconds_of_models = self._build_seconds = 0.0
        self._earlier_trials = self._earlier_failures = 0
        self._unfit = 0
        self._early: set[Subject] = set()
        self._progress = progress
        self.learner = learner
        self.lessons = Lessons(self.states, learner, options.seed)

    def run(self) -> TuneReport:
        """The whole job."""
        self.show("reading")
        given = job_digest(self.model, self.config, self.options.tasks)
        if self._is_finished(given):
            name = frontend_of(self.model).source_name(self.model)
            return self._report(model_name(name), Verdict(()))
        self.show("lowering")
        algorithms = StoredAlgorithms(self.old)
        prepared = self._lowered(algorithms)
        self.notes += prepared.notes
        kernels = distinct_kernels(prepared.pipeline.fused, self.spec)
        tunable = {subject: task for subject, task in kernels.items() if len(task.space) > 1}
        name = prepared.lowered.source_name
        if not tunable:
            raise ConfigError(f"{name}: no kernel leaves anything to decide; nothing can be tuned")
        self.left_alone += [
            (task.name, "has nothing to decide") for s, task in kernels.items() if s not in tunable
        ]
        digest = self._digest(tunable)
        if self._is_finished(digest):
            return self._report(name, Verdict(()))
        lowered = time.monotonic() - self.begin
        with self.shelf.scratch_folder() as self.scratch, self._folder() as folder:
            self.show("profiling")
            with self._whole_models():
                before = build(prepared, self.old, Path(folder) / "module")
                self._build_seconds = time.monotonic() - self.begin - lowered
                tasks = with_times(list(tunable.values()), self._profile(before, prepared))
            try:
                choice = self._choose_algorithms(prepared, algorithms, tasks, before)
                start = before
                if choice.is_new:
                    with self._whole_models():
                        start = build(choice.prepared, self.old, Path(folder) / "start")
                        found = distinct_kernels(choice.prepared.pipeline.fused, self.spec)
                        tasks = with_times(
                            [task for task in found.values() if len(task.space) > 1],
                            self._profile(start, choice.prepared),
                        )
                self._choose(tasks)
                if self.states:
                    whole = self.deadline - self.begin
                    reserve = seconds_to_reserve(whole, self._build_seconds)
                    self._search(self.deadline - reserve, choice.prepared, start, tasks)
                with self._whole_models():
                    if self.states:
                        self._confirm(choice.prepared, start)
                    verdict = self._finish(prepared, before, choice)
            except NoDeviceError as error:
                trials = self._earlier_trials + sum(state.trials for state in self.states)
                raise NoDeviceError(
                    f"{name}: {error}; {trials} trials of this job are kept: with another board "
                    "the same command goes on"
                ) from error
        # Where time ran out before each kernel had its share, the next job gives it to the rest.
        waiting = [state for state in self.states if not (state.is_served or state.abandoned)]
        if waiting:
            self.notes.append(
                f"time ran out before {len(waiting)} kernels were searched, {lowered:.0f} s of it "
                "for lowering the model; the same command goes on"
            )
        elif verdict.is_complete:
            self.shelf.add_finished_jobs([d for d in (given, digest) if d is not None])
        return self._report(name, verdict)

    def show(self, phase: str) -> None:
        """Tell the caller how far the job is."""
        if self._progress is None:
            return
        rows = tuple(state.row(self.options.trials) for state in self.states)
        now = time.monotonic()
        self._progress(JobView(phase, rows, now - self.begin, max(0.0, self.deadline - now)))

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(dir=self.scratch)

    @contextmanager
    def _whole_models(self) -> Iterator[None]:
        """Within, modules of the whole model are built and run."""
        begin = time.monotonic()
        yield
        self._seconds_of_models += time.monotonic() - begin

    def _is_finished(self, digest: str | None) -> bool:
        """Whether a job has come to its end, and this one is not to go beyond."""
        if self.options.fresh or self.options.resume:
            return False
        return digest in self.shelf.finished_jobs()

    def _digest(self, tunable: dict[Subject, Task]) -> str:
        """Names the search: the kernels, and how many of them were to be searched."""
        parts = [f"{s.template} {s.version} {s.workload}" for s in sorted(tunable)]
        content = "\n".join([*parts, f"tasks {self.options.tasks}"])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def _profile(self, module: Path, prepared: Prepared) -> list[StepTime]:
        name, manifest = prepared.lowered.source_name, read_manifest(module)
        if manifest.form != "self-contained":
            raise BuildError(
                f"{name}: cannot be tuned in the VM form ({manifest.vm_reason}): bind its shapes "
                "with --shape"
            )
        steps = self.runner.step_seconds([module], _PROFILE_SECONDS)
        if steps is None:
            raise BuildError(f"{name}: the module crashes when it is timed; see `tinsmith verify`")
        return steps[0]

    def _choose(self, tasks: list[Task]) -> None:
        """Make the states of the tasks that are searched, and say why others are not."""
        trials = {} if self.options.fresh else self.shelf.trials()
        near = [shelf.records() for shelf in self.store.near(self.spec)]
        selection = select(tasks, self.options, self.records, trials, near)
        self.states += selection.states
        self._unfit = max(self._unfit, selection.unfit)
        self.left_alone += selection.left_alone
        self.shelf.add_workloads({s.task.subject.workload: s.task.numbers for s in self.states})
        self.lessons = Lessons(self.states, self.learner, self.options.seed)
        if self.options.strategy == "model":
            self.lessons.warm_start(trials, self.shelf.workloads())

    def _lowered(self, algorithms: AlgorithmLookup) -> Prepared:
        return prepare(
            self.model,
            self.config,
            self.spec,
            Clock(None),
            self.old,
            reported=False,
            algorithms=algorithms,
        )

    def _choose_algorithms(
        self, prepared: Prepared, known: StoredAlgorithms, tasks: list[Task], before: Path
    ) -> Choice:
        """The best algorithms of the convolutions that have no record.

        Quantised models keep those of the rule: float convolutions are few in them.
        """
        search = AlgorithmSearch(
            prepared, known, self._lowered, self.old, self.runner, self.scratch
        )
        as_it_is = Choice(prepared)
        if self.config.quantization is not None or not search.restrict(tasks):
            return as_it_is
        self.show("comparing algorithms")
        with self._whole_models():
            if not search.measure():
                self.notes.append("the model crashes with other algorithms; they are left alone")
                return as_it_is
        told = self.left_alone.copy()
        self._choose(search.contenders())
        if self.states:
            end = self.begin + _ALGORITHMS_SHARE * (self.deadline - self.begin)
            self._search(end, prepared, before, tasks)
        self.show("comparing algorithms")
        with self._whole_models():
            choice = search.decide(self.states, self._maker(prepared).provenance)
        self._earlier_trials = sum(state.trials for state in self.states)
        self._earlier_failures = sum(state.failures for state in self.states)
        # The kernels of the chosen go on from the trials in the log.
        self.states, self.left_alone = [], told
        return choice

    def _search(
        self, deadline: float, prepared: Prepared, before: Path, tasks: Sequence[Task]
    ) -> None:
        """Search the states; what is fast is confirmed in `prepared`, which has these tasks."""
        early = self._early_records(prepared, before, tasks)
        kernels = [state.task.kernel for state in self.states]
        with self.runner.measurer(kernels, self.options.extensions, self.scratch) as measurer:
            measurer.ledger = self.ledger
            loop = TrialLoop(
                self.states,
                self.options.trials,
                self.lessons,
                self.options.strategy == "model",
                self.shelf,
                lambda: self.show("searching"),
                early,
            )
            self.notes += loop.run(measurer, deadline)
        self._early |= early.written

    def _early_records(
        self, prepared: Prepared, before: Path, tasks: Sequence[Task]
    ) -> EarlyRecords:
        """What confirms and writes records during the search."""

        def confirm_in_model(states: Sequence[TaskState], extent: Confirmation) -> None:
            self.show("confirming")
            with self._whole_models():
                confirm(states, prepared, before, self.old, self.runner, self.scratch, extent)

        return EarlyRecords(
            {task.subject: task for task in tasks},
            confirm_in_model,
            self._maker(prepared).early,
            self.shelf,
            self._build_seconds + 1.0,
        )

    def _confirm(self, prepared: Prepared, before: Path) -> None:
        """Find the winners among the fastest, in the model."""
        self.show("confirming")
        extent = confirmation(self.deadline - time.monotonic(), self._build_seconds)
        if not confirm(self.states, prepared, before, self.old, self.runner, self.scratch, extent):
            self.notes.append("the fastest candidates crash together in the model; none is kept")

    def _finish(self, prepared: Prepared, before: Path, choice: Choice) -> Verdict:
        """Compare whole models, and write the records; `prepared` has the old algorithms."""
        self.show("comparing whole models")
        searched = [s for s in self.states if not s.abandoned and s.is_served]
        winners = [s for s in searched if s.winner is not None]
        winners.sort(key=lambda s: s.task.seconds * ((s.ratio or 1.0) - 1.0))
        maker = self._maker(prepared)
        new = [maker.record(state) for state in winners]
        verdict = accept(
            choice.prepared,
            before,
            new,
            self.old,
            self.runner,
            self.deadline,
            self.scratch,
            choice.is_new,
        )
        self.notes += verdict.notes
        is_kept = not choice.is_new or verdict.after_ms > 0
        if not is_kept:
            self.notes.append("other algorithms do not help the whole model")
            known = distinct_kernels(prepared.pipeline.fused, self.spec)
            searched = [s for s in searched if s.task.subject in known]
            new = [record for record in new if record.subject in known]
            verdict = accept(
                prepared, before, new, self.old, self.runner, self.deadline, self.scratch
            )
        elif choice.is_new:
            self.notes += choice.told
        self.shelf.add_records(choice.records if is_kept else choice.rejected)
        kept = {record.subject for record in verdict.kept}
        rest = [s for s in searched if s.task.subject not in kept]
        for state in rest:
            state.winner, state.ratio = None, state.record.ratio if state.record else 1.0
        open_ones = {r.subject for r in new} if not verdict.is_complete else set()
        closed = [s for s in rest if s.task.subject not in open_ones]
        self.shelf.add_records([*verdict.kept, *maker.final(closed, self._early)])
        return verdict

    def _maker(self, prepared: Prepared) -> RecordMaker:
        return RecordMaker(prepared.lowered.source_name, self.runner.processor)

    def _report(self, name: str, verdict: Verdict) -> TuneReport:
        seconds = time.monotonic() - self.begin
        useful = self.ledger.seconds + self._seconds_of_models
        failed = self._earlier_failures + sum(state.failures for state in self.states)
        if failed:
            self.notes.append(f"{failed} candidates failed; see `tinsmith logs show`")
        ignored = told_of_ignored(self.records, self._unfit)
        if ignored:
            self.notes.append(f"records {ignored}")
        if self.learner.note:
            self.notes.append(self.learner.note)
        return TuneReport(
            model=name,
            target=self.config.target,
            folder=self.shelf.folder,
            rows=tuple(state.row(self.options.trials) for state in self.states),
            left_alone=tuple(self.left_alone),
            trials=self._earlier_trials + sum(state.trials for state in self.states),
            kept=len(verdict.kept),
            before_ms=verdict.before_ms,
            after_ms=verdict.after_ms,
            seconds=seconds,
            overhead=max(0.0, 1 - useful / seconds),
            notes=(*self.notes, *self.runner.notes),
        )
