"""The cost models of a job, one for each template, and what they have learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.cost_model import CostModel, Samples
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.records import Subject, Trial, decisions_key

Tried = Mapping[Subject, Mapping[tuple[tuple[str, int], ...], Trial]]


class Lessons:
    """Cost models for `states`, which grow with what is measured of them."""

    def __init__(self, states: Sequence[TaskState], learner: Learner, seed: int) -> None:
        self._states, self._learner, self._seed = states, learner, seed
        self._others: dict[str, list[Samples]] = {}
        self._models: dict[str, CostModel] = {}

    def warm_start(self, trials: Tried, numbers: Mapping[str, Mapping[str, int]]) -> None:
        """Learn what earlier jobs have measured, of other workloads too.

        `numbers` describe the workloads of which there are `trials`, by their key.
        """
        own = {state.task.subject for state in self._states}
        for subject, tried in trials.items():
            if subject not in own and subject.workload in numbers:
                measured = list(tried.values())
                sample = Samples(
                    numbers[subject.workload],
                    [trial.decisions for trial in measured],
                    [trial.ratio for trial in measured],
                )
                self._others.setdefault(subject.template, []).append(sample)
        for template in sorted({subject.template for subject in own}):
            self.learn(template)

    def model(self, template: str) -> CostModel:
        """What is known of a template."""
        return self._models.setdefault(template, CostModel(self._learner, self._seed))

    def learn(self, template: str) -> None:
        """Teach the model of a template all that has been measured."""
        samples = list(self._others.get(template, ()))
        for state in self._states:
            if state.task.subject.template == template:
                tried = state.search.tried
                listed = [d for d in state.task.space if decisions_key(d) in tried]
                ratios = [tried[decisions_key(d)] for d in listed]
                samples.append(Samples(state.task.numbers, listed, ratios))
        self.model(template).fit(samples)
