"""Classes that a compiled graph chooses, and bounds on how many may change by quantising."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.compiler.calibration import (
    CalibrationSource,
    Folds,
    ObservedModule,
    Preprocessing,
    RandomSource,
    open_calibration,
)
from tinsmith.compiler.calibration.folds import labels_for
from tinsmith.compiler.errors import ConfigError, InputError, ModelError
from tinsmith.compiler.evaluate.inputs import Domains
from tinsmith.compiler.quantization.config import QuantizationConfig
from tinsmith.compiler.quantization.outputs import ClassOutput, class_output, described
from tinsmith.compiler.sample_options import SampleOptions
from tinsmith.passes.progress import Progress


@dataclass(frozen=True)
class Verdict:
    """A quantised graph against the float graph, over `samples` samples.

    `agreement` is the share of samples for which both choose the same class, `top1` and
    `float_top1` are the shares of right ones (None without labels).
    """

    samples: int
    agreement: float
    top1: float | None = None
    float_top1: float | None = None

    @property
    def drop(self) -> float | None:
        """Points of top-1 accuracy that were lost; negative if some were won."""
        if self.top1 is None or self.float_top1 is None:
            return None
        return (self.float_top1 - self.top1) * 100


def pooled(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The verdict on the samples of all together; None if there is none on some of them."""
    found = [verdict for verdict in verdicts if verdict is not None]
    samples = sum(verdict.samples for verdict in found)

    def mean(name: str) -> float | None:
        shares = [getattr(verdict, name) for verdict in found]
        if None in shares:
            return None
        return sum(s * v.samples for s, v in zip(shares, found, strict=True)) / samples

    agreement = mean("agreement") if samples else None
    if agreement is None:
        return None
    return Verdict(samples, agreement, mean("top1"), mean("float_top1"))


@dataclass(frozen=True)
class Bounds:
    """What a user demands: percent of equal classes, points of top-1 accuracy; None: nothing."""

    min_agreement: float | None = None
    max_drop: float | None = None

    def __bool__(self) -> bool:
        return self.min_agreement is not None or self.max_drop is not None

    def hold(self, verdict: Verdict) -> bool:
        """Whether a graph with this verdict will do."""
        slack = 1e-9  # percentages are ratios of whole numbers
        if self.min_agreement is not None and verdict.agreement * 100 < self.min_agreement - slack:
            return False
        return self.max_drop is None or (verdict.drop or 0.0) <= self.max_drop + slack


SEEN = (
    "warning: agreement and accuracy were measured on the samples that calibrated the "
    "ranges, too few to hold any out, and may be lower on others; pass --evaluation"
)


class Evaluation:
    """Samples on which classes are compared, with labels or without."""

    def __init__(
        self, source: CalibrationSource, labels: np.ndarray | None, held_out: bool
    ) -> None:
        """`held_out` tells that calibration has not seen the samples."""
        self.source = source
        self.labels = labels
        self.held_out = held_out
        self._output: ClassOutput | None = None

    def check(self, graph: tvm.IRModule) -> None:
        """Find the output whose classes are compared, see `outputs.class_output`.

        Raises ModelError if the model has none, InputError if a label is no index into it.
        """
        self._output = class_output(graph)
        if self._output is None:
            raise ModelError(
                f"the model returns {described(graph)}, none of them a row of scores: classes "
                "cannot be compared; leave out --min-agreement, --max-drop, --labels and "
                "--evaluation, and look at the SQNR in the report"
            )
        count = self._output.count
        if count is not None and self.labels is not None and self.labels.max(initial=0) >= count:
            raise InputError(
                f"--labels: class {int(self.labels.max())}, but the model has {count} classes "
                "(from 0)"
            )

    def on(self, source: CalibrationSource, labels: np.ndarray | None) -> Evaluation:
        """The same on other samples of the same model; `check` need not come again."""
        other = Evaluation(source, labels, self.held_out)
        other._output = self._output
        return other

    def classes(self, module: ObservedModule, progress: Progress | None = None) -> np.ndarray:
        """The class of each row of each sample, int64; `check` comes first.

        Raises InputError if there are not as many labels as samples.
        """
        if self._output is None:
            raise ValueError("the graph was not checked for an output of classes")
        found: list[np.ndarray] = []
        for index, sample in enumerate(self.source):
            if progress is not None:
                progress("evaluate", index / (self.source.count or index + 1))
            found.append(self._output.chosen(module.run(list(sample.values())).outputs))
        classes = np.concatenate(found)
        if self.source.rows is not None:
            classes = classes[: len(self.source.chosen)]  # the last batch is filled up
        if self.labels is not None and len(self.labels) != len(classes):
            raise InputError(f"--labels: {len(self.labels)} labels for {len(classes)} samples")
        return classes

    def judge(self, exact: np.ndarray, quantized: np.ndarray) -> Verdict:
        """The verdict on the classes of the quantised graph."""
        same = float((exact == quantized).mean())
        if self.labels is None:
            return Verdict(len(exact), same)
        right = float((quantized == self.labels).mean()), float((exact == self.labels).mean())
        return Verdict(len(exact), same, *right)

    def notes(self, bounds: Bounds) -> tuple[str, ...]:
        """What a reader of the report has to know about the data."""
        if self.held_out or not (bounds or self.labels is not None):
            return ()
        return (SEEN,)


def open_evaluation(
    config: QuantizationConfig,
    signature: Mapping[str, tuple[tuple[int, ...], str]],
    split: Folds,
    bounds: Domains,
    seed: int,
) -> Evaluation | None:
    """What the options ask to evaluate on; None if they do not.

    `split` are the samples to learn from and to judge by, if there is no other evaluation data.
    Raises ConfigError and InputError for data or labels that cannot be used.
    """
    found = judging_samples(config, signature, split, bounds, seed)
    labels = found.labels
    if config.max_drop is not None and labels is None:
        raise ConfigError(
            "--max-drop needs the classes of the samples: pass --labels FILE, --labels from-names "
            "for pictures, or an .npz with an array `labels`; without any, use --min-agreement"
        )
    bound = Bounds(config.min_agreement, config.max_drop)
    asked = config.evaluation is not None or config.labels is not None or bound
    return found if asked else None


def judging_samples(
    options: SampleOptions,
    signature: Mapping[str, tuple[tuple[int, ...], str]],
    split: Folds,
    bounds: Domains,
    seed: int,
) -> Evaluation:
    """The evaluation data of the options, or those of `split`, with labels if there are any.

    Raises ConfigError and InputError for data or labels that cannot be used.
    """
    source, data, unseen = split.judge, options.calibration, split.unseen
    if options.evaluation is not None:
        data, unseen = options.evaluation, True
        source = open_calibration(
            data,
            signature,
            preprocessing=Preprocessing.of(options),
            bounds=bounds,
            seed=seed,
            option="--evaluation",
        )
        if isinstance(source, RandomSource):
            raise ConfigError("--evaluation random: accuracy on random data means nothing")
    return Evaluation(source, labels_for(options.labels, data, source), unseen)
