"""The pipeline as a value: named steps in order, to be cut, extended and run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import tvm

from tinsmith.compiler.pipeline.runner import PassRunner, PassTiming
from tinsmith.compiler.pipeline.step import Step
from tinsmith.passes.progress import Progress
from tinsmith.targets.template import KernelReport


@dataclass(frozen=True)
class PipelineReport:
    """The module that came out, what each pass did in order, and how kernels were scheduled.

    `before_last` is the module that the last step was given: of a whole pipeline the fused
    kernels before they were scheduled, which is what a tuning job begins with.
    """

    module: tvm.IRModule
    passes: tuple[PassTiming, ...]
    kernels: tuple[KernelReport, ...]
    before_last: tvm.IRModule
    dumped: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fused(self) -> tvm.IRModule:
        """The kernels before they were scheduled."""
        return self.before_last

    @property
    def seconds(self) -> float:
        """Time of all passes and verifications."""
        return sum(timing.seconds + timing.verification_seconds for timing in self.passes)

    @property
    def pass_names(self) -> tuple[str, ...]:
        """The passes in the order in which they ran."""
        return tuple(timing.name for timing in self.passes)


@dataclass(frozen=True)
class Pipeline:
    """Named steps, in order; no two have the same name.

    Nothing changes a pipeline: every method answers another one. Names that are not there
    raise ValueError.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for index, name in enumerate(self.names):
            if name in self.names[:index]:
                raise ValueError(f"two steps are named {name}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(step.name for step in self.steps)

    def until(self, name: str) -> Pipeline:
        """The steps before that one."""
        return replace(self, steps=self.steps[: self._index(name)])

    def since(self, name: str) -> Pipeline:
        """That step and those behind it."""
        return replace(self, steps=self.steps[self._index(name) :])

    def with_step(self, step: Step, *, before: str | None = None) -> Pipeline:
        """With `step` before another one, or else in the place of the step of its own name."""
        if before is not None:
            return self.with_steps((step,), before=before)
        at = self._index(step.name)
        return replace(self, steps=(*self.steps[:at], step, *self.steps[at + 1 :]))

    def with_steps(self, steps: Iterable[Step], *, before: str) -> Pipeline:
        """With `steps` before another one."""
        at = self._index(before)
        return replace(self, steps=(*self.steps[:at], *steps, *self.steps[at:]))

    def run(
        self,
        module: tvm.IRModule,
        *,
        dump: Path | None = None,
        progress: Progress | None = None,
        runner: PassRunner | None = None,
    ) -> PipelineReport:
        """Run the steps on `module`, which is verified before the first and after each.

        With `dump`, that folder receives `NN_name.py` after each step: the module as script,
        constants elided. `progress` is told each step that begins. `runner` goes on with what it
        has run before, and the report tells of that, too; `dump` is that runner's business then.

        Raises PassError if a module is ill-formed, a pass fails or a module is not what a pass
        requires, naming the pass, and ConfigError if `dump` cannot be written.
        """
        runner = runner or PassRunner(dump)
        if not runner.timings:
            runner.verify(module, "the imported module")
        before = module
        for done, (name, apply) in enumerate(self.steps):
            if progress is not None:
                progress(name, done / len(self.steps))
            before, module = module, runner.run(name, apply, module)
        return PipelineReport(
            module,
            tuple(runner.timings),
            runner.kernels,
            before,
            tuple(runner.dumped),
            tuple(runner.notes),
        )

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"no step is named {name}; there are {', '.join(self.names)}")
        return self.names.index(name)
