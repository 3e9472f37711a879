"""How a pruned graph's classes compare with those of the whole one."""

from __future__ import annotations

import numpy as np
import tvm

from tinsmith.compiler.calibration.folds import SomeSamples
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.classes import Evaluation, Verdict
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress


class Judge:
    """Runs graphs on the samples to judge by; without samples or scores it has no verdict.

    `notes` are for the report.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        workshop: Workshop,
        progress: Progress | None = None,
    ) -> None:
        """Graphs have learned from the samples of `evaluation` unless these are held out."""
        self.evaluation = evaluation
        self.notes: tuple[str, ...] = ()
        self._workshop = workshop
        self._progress = progress
        self._classes: np.ndarray | None = None

    @property
    def label(self) -> str | None:
        """What the samples are called."""
        return None if self.evaluation is None else self.evaluation.source.label

    def on(self, part: SomeSamples) -> Judge:
        """A judge by some of the samples, which has its reference if this one has."""
        if self.evaluation is None or self._classes is None:
            raise ValueError("there is no reference")
        labels = self.evaluation.labels
        judge = Judge(
            self.evaluation.on(part, None if labels is None else part.labels_of(labels)),
            self._workshop,
        )
        judge._classes = part.labels_of(self._classes)
        return judge

    def set_reference(self, whole: tvm.IRModule) -> Verdict | None:
        """Take the classes of the unpruned graph as those to agree with; the verdict on itself."""
        if self.evaluation is None:
            return None
        try:
            self.evaluation.check(whole)
        except ModelError:
            self.notes = ("no output is a row of scores: agreement was not measured",)
            return None
        if not self.evaluation.held_out:
            self.notes = (
                "warning: agreement and accuracy were not measured: the samples are too few to "
                "hold any out, and those that the recovery has seen would flatter; pass more, or "
                "--evaluation",
            )
            return None
        self._classes = self._chosen(self.evaluation, whole)
        return self.evaluation.judge(self._classes, self._classes)

    def verdict(self, module: tvm.IRModule) -> Verdict | None:
        """How often the graph chooses the class of the unpruned one, and the right one."""
        if self.evaluation is None or self._classes is None:
            return None
        return self.evaluation.judge(self._classes, self._chosen(self.evaluation, module))

    def _chosen(self, evaluation: Evaluation, module: tvm.IRModule) -> np.ndarray:
        with compile_graph(module, self._workshop) as compiled:
            return evaluation.classes(compiled, self._progress)
