"""The samples of a pruning: those that it learns from, and those that judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinsmith.compiler.calibration import (
    CalibrationSource,
    Folds,
    Preprocessing,
    RandomSource,
    folds,
    open_calibration,
)
from tinsmith.compiler.calibration.folds import CrossFold, SomeSamples, cross_folds, labels_for
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.classes import Evaluation, judging_samples
from tinsmith.compiler.evaluate.inputs import Domains
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.views import FEW_SAMPLES

Signature = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class PruneSamples:
    """What a pruning reads.

    `learn` is what criteria and recovery see, `judging` is for the report and has nothing in
    common with it, `choosing` is for what the widths are chosen by. `held_out` are the samples of
    the same data that nothing may learn from. Each is None where there are no such data.

    With `folds`, all samples are both to learn from and to judge by: each fold asks for a pruning
    of its own, which judges what was not learned from in it.
    """

    learn: CalibrationSource | None = None
    judging: Evaluation | None = None
    choosing: Evaluation | None = None
    held_out: CalibrationSource | None = None
    folds: tuple[CrossFold, ...] = ()


def open_samples(
    config: PruneConfig, signature: Signature, bounds: Domains, seed: int
) -> PruneSamples:
    """The samples that the options name.

    Without evaluation data, some samples are held out of the calibration data, if anything is
    learned or chosen by them. Raises ConfigError and InputError for samples or labels that cannot
    be used.
    """
    by_curves = config.allocation == "sensitivity" and config.removes_channels
    if config.calibration is None:
        if config.evaluation is None:
            return PruneSamples()
        source = _opened(config, signature, bounds, seed, config.evaluation, "--evaluation")
        if isinstance(source, RandomSource):
            raise ConfigError("--evaluation random: accuracy on random data means nothing")
        split = folds(source) if by_curves else Folds(source, source, True)
        judging, choosing = (
            Evaluation(part, labels_for(config.labels, config.evaluation, part), unseen)
            for part, unseen in ((split.judge, split.unseen), (split.learn, True))
        )
        return PruneSamples(None, judging, choosing)
    source = _opened(config, signature, bounds, seed, config.calibration, "--calibration")
    is_split = config.learns and config.evaluation is None
    split = folds(source) if is_split else Folds(source, source, not config.learns)
    if is_split and _is_cross_fitted(config, source, split):
        found = Evaluation(source, labels_for(config.labels, config.calibration, source), True)
        return PruneSamples(source, found, found, None, cross_folds(source))
    judging = judging_samples(config, signature, split, bounds, seed)
    choosing = judging
    if by_curves or not judging.held_out:
        labels = config.labels if config.evaluation is None else None
        choosing = Evaluation(
            split.learn, labels_for(labels, config.calibration, split.learn), True
        )
    return PruneSamples(split.learn, judging, choosing, split.judge if is_split else None)


def _is_cross_fitted(config: PruneConfig, source: CalibrationSource, split: Folds) -> bool:
    """Whether folds judge: few samples, of which a part would have to be held out.

    Not where a pruning takes much longer than its closed form: trained, or to a measured goal.
    """
    return (
        config.cross_fit
        and isinstance(split.judge, SomeSamples)
        and source.count is not None
        and source.count < FEW_SAMPLES
        and config.chosen_recovery != "distill"
        and config.allocation != "sensitivity"
        and config.goal_name != "latency"
    )


def _opened(
    config: PruneConfig,
    signature: Signature,
    bounds: Domains,
    seed: int,
    data: object,
    option: str,
) -> CalibrationSource:
    return open_calibration(
        data,  # type: ignore[arg-type]
        signature,
        preprocessing=Preprocessing.of(config),
        limit=config.samples if option == "--calibration" else None,
        bounds=bounds,
        seed=seed,
        option=option,
    )
