"""Learns, from what was measured, how fast candidates will be.

Gradient-boosted trees on the features of a candidate, as in Chen et al., "Learning to Optimize
Tensor Programs" (NeurIPS 2018). The target is the logarithm of the time relative to the
template's default, so that kernels of all sizes teach one model, and a new task begins with what
is known of others. They grow in a process of their own, see `learner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.tuning.features import feature_matrix
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.targets.template import Decisions

# With fewer samples predictions are worse than chance.
_FEWEST = 12
# A candidate that failed, or is worse than that, is bad all the same.
_WORST_RATIO = 4.0


@dataclass(frozen=True)
class Samples:
    """What was measured of one workload: its numbers, its candidates, their ratios."""

    numbers: Mapping[str, int]
    candidates: Sequence[Decisions]
    ratios: Sequence[float]


class CostModel:
    """Predicts the logarithm of the time relative to the default; `learner` does the work."""

    def __init__(self, learner: Learner, seed: int = 0) -> None:
        self._learner, self._seed = learner, seed
        self._names: tuple[str, ...] = ()
        self._decided: tuple[str, ...] = ()
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def fit(self, samples: Sequence[Samples]) -> None:
        """Know all samples, and nothing else; they are of one template."""
        self._names = tuple(sorted({name for s in samples for name in s.numbers}))
        self._decided = tuple(sorted({name for s in samples for c in s.candidates for name in c}))
        known = [s for s in samples if s.candidates]
        if sum(len(s.candidates) for s in known) < _FEWEST:
            self._known = None
            return
        features = np.vstack(
            [feature_matrix(s.numbers, self._names, self._decided, s.candidates) for s in known]
        )
        ratios = np.concatenate([np.asarray(s.ratios, np.float64) for s in known])
        targets = np.log(np.minimum(ratios, _WORST_RATIO)).astype(np.float32)
        self._known = features, targets

    def predict(
        self, numbers: Mapping[str, int], candidates: Sequence[Decisions]
    ) -> np.ndarray | None:
        """The expected logarithm of each candidate's ratio.

        None if too little is known to tell, or if learning fails.
        """
        if self._known is None:
            return None
        wanted = feature_matrix(numbers, self._names, self._decided, candidates)
        return self._learner.predict(*self._known, wanted, self._seed)
