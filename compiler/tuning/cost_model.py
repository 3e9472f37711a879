"""Learns, from what was measured, how fast candidates will be.

Gradient-boosted trees on the features of a candidate (Chen and Guestrin,
"XGBoost: A Scalable Tree Boosting System", KDD 2016), as in Chen et al.,
"Learning to Optimize Tensor Programs" (NeurIPS 2018). The target is the
logarithm of the time relative to the template's default, so that kernels of all
sizes teach one model, and a new task begins with what is known of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.tuning.features import feature_matrix
from targets.cpu.template import Decisions

# With fewer samples predictions are worse than chance.
_FEWEST = 12
# A candidate that failed, or is worse than that, is bad all the same.
_WORST_RATIO = 4.0
_ROUNDS = 60


@dataclass(frozen=True)
class Samples:
    """What was measured of one workload: its numbers, its candidates, their ratios."""

    numbers: Mapping[str, int]
    candidates: Sequence[Decisions]
    ratios: Sequence[float]


class CostModel:
    """Predicts the logarithm of the time relative to the default."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._names: tuple[str, ...] = ()
        self._booster: object | None = None

    @property
    def ready(self) -> bool:
        """Whether it has learnt anything."""
        return self._booster is not None

    def fit(self, samples: Sequence[Samples]) -> None:
        """Learn anew from all samples; they are of one template."""
        import xgboost

        self._names = tuple(sorted({name for s in samples for name in s.numbers}))
        known = [s for s in samples if s.candidates]
        if sum(len(s.candidates) for s in known) < _FEWEST:
            self._booster = None
            return
        features = np.vstack([feature_matrix(s.numbers, self._names, s.candidates) for s in known])
        ratios = np.concatenate([np.asarray(s.ratios, np.float64) for s in known])
        data = xgboost.DMatrix(features, np.log(np.minimum(ratios, _WORST_RATIO)), nthread=1)
        options = {
            "max_depth": 6,
            "eta": 0.2,
            "min_child_weight": 1.0,
            "subsample": 0.9,
            "nthread": 1,
            "seed": self._seed,
            "verbosity": 0,
        }
        self._booster = xgboost.train(options, data, num_boost_round=_ROUNDS)

    def predict(self, numbers: Mapping[str, int], candidates: Sequence[Decisions]) -> np.ndarray:
        """The expected logarithm of each candidate's ratio; all 0 before anything is learnt."""
        import xgboost

        if self._booster is None or not candidates:
            return np.zeros(len(candidates))
        features = feature_matrix(numbers, self._names, candidates)
        return np.asarray(self._booster.predict(xgboost.DMatrix(features, nthread=1)))  # type: ignore[attr-defined]
