"""Importance by how often a channel is not zero."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.prune.importance.mean_activation import MeanActivation


class ActiveShare(MeanActivation):
    """The share of values that are not zero, of each channel: one minus its APoZ.

    Source: Hu et al. 2016, "Network Trimming", equation 1, the average percentage of
    zeros (arXiv:1607.03250). It tells channels apart behind a ReLU only: elsewhere hardly
    any value is exactly zero.
    """

    def _measure(self, array: np.ndarray) -> np.ndarray:
        return array != 0
