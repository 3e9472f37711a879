"""Keeps in float what must be, so that a bound on the loss of accuracy holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.errors import VerificationError
from tinsmith.compiler.evaluate.classes import Bounds, Evaluation, Verdict
from tinsmith.compiler.quantization.recipe import Mixture
from tinsmith.compiler.quantization.sensitivity import fewest, sensitivities
from tinsmith.compiler.quantization.workbench import Candidate, Workbench
from tinsmith.passes.progress import Progress


@dataclass(frozen=True)
class Accuracy:
    """A candidate within the bounds.

    `kept` are the layers that it keeps out of integers, with their sensitivities; `first` is
    the candidate with everything in integers, if another was chosen. `notes` are for the report.
    """

    candidate: Candidate
    kept: Mapping[str, float]
    first: Candidate | None = None
    notes: tuple[str, ...] = ()


class AccuracyKeeper:
    """Judges candidates on evaluation data and finds one that is within the bounds."""

    def __init__(
        self,
        bench: Workbench,
        evaluation: Evaluation,
        bounds: Bounds,
        progress: Progress | None = None,
    ) -> None:
        self._bench = bench
        self._evaluation = evaluation
        self._bounds = bounds
        self._progress = progress
        self._exact = evaluation.classes(bench.exact, progress)
        self._verdicts: WeakKeyDictionary[Candidate, Verdict] = WeakKeyDictionary()

    def verdict(self, candidate: Candidate) -> Verdict:
        """How the candidate does beside the float model."""
        if candidate not in self._verdicts:
            classes = self._evaluation.classes(candidate.module, self._progress)
            self._verdicts[candidate] = self._evaluation.judge(self._exact, classes)
        return self._verdicts[candidate]

    def accepts(self, candidate: Candidate) -> bool:
        """Whether the bounds hold for the candidate."""
        return self._bounds.hold(self.verdict(candidate))

    def within_bounds(self, candidate: Candidate, source: CalibrationSource) -> Accuracy:
        """`candidate`, or a variant with as many of its worst layers in float as are needed.

        Layers are ordered by their sensitivity, measured one by one on `source`. How many stay
        in float is searched for by bisection: each trial is compiled and evaluated in integers.
        Raises VerificationError if the bounds do not hold and there are no variants.
        """
        notes = [*self._evaluation.notes(self._bounds), *self._resolution()]
        verdict = self.verdict(candidate)
        if self._bounds.hold(verdict):
            return Accuracy(candidate, {}, notes=tuple(notes))
        mixture = candidate.prepared.mixture
        if mixture is None:
            raise VerificationError(
                f"the bound does not hold: {_told(verdict)}; only with --quantize int8 can layers "
                "be kept in float to reach it: loosen it or choose another format"
            )
        names, probe = mixture.probe()
        found = sensitivities(probe, names, source, self._bench.workshop, self._progress)
        worst = sorted(names, key=lambda name: -found[name])
        for precision in mixture.precisions:
            count, chosen = self._fewest(candidate, mixture, worst, precision)
            if self.accepts(chosen):
                break
            if precision != mixture.precisions[-1]:
                self._bench.discard(chosen)
        told = (
            f"{count} of {len(worst)} layers, the most sensitive ones, compute in {precision}: "
            f"with all in integers {_told(verdict)}, now {_told(self.verdict(chosen))}"
        )
        notes.append(told)
        notes.append(
            "these layers were chosen by the samples that the figure is of: it may be a little "
            "lower on others"
        )
        if count == len(worst):
            notes.append("warning: the bound leaves no layer in integers; loosen it")
        kept = {name: found[name] for name in worst[:count]}
        return Accuracy(chosen, kept, candidate, tuple(notes))

    def _fewest(
        self, candidate: Candidate, mixture: Mixture, worst: Sequence[str], precision: str
    ) -> tuple[int, Candidate]:
        """How many of the `worst` layers `precision` is needed for, and the candidate with it."""
        trials: dict[int, Candidate] = {}

        def holds(count: int) -> bool:
            kept = candidate.prepared.kept | dict.fromkeys(worst[:count], precision)
            trials[count] = self._bench.candidate(mixture.keeping(kept))
            return self.accepts(trials[count])

        count = fewest(len(worst), holds)
        if count not in trials:
            holds(count)
        for other, made in trials.items():
            if other != count:
                self._bench.discard(made)
        return count, trials[count]

    def _resolution(self) -> tuple[str, ...]:
        """A note if so few samples cannot tell whether the bound holds."""
        step = 100 / len(self._exact)
        bounds = self._bounds
        finest = [bounds.max_drop] if bounds.max_drop is not None else []
        finest += [100 - bounds.min_agreement] if bounds.min_agreement is not None else []
        if all(bound == 0 or bound >= step for bound in finest):
            return ()
        return (
            f"{len(self._exact)} samples tell {step:.2g} points apart, which is coarser than the "
            "bound: no sample may change; pass more with --evaluation",
        )


def _told(verdict: Verdict) -> str:
    text = f"{verdict.agreement:.2%} agree with float32"
    if verdict.drop is not None and verdict.top1 is not None:
        text += f", top-1 {verdict.top1:.2%} ({0.0 - verdict.drop:+.2f} points)"
    return text
