"""Scores of the units of all groups by a criterion, from weights or from samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.pruning.observed import ObservedGraph
from tinsmith.compiler.pruning.taylor import taylor_scores
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.allocation.ranking import Kind
from tinsmith.passes.prune.groups import Channels, Group, Groups, Member
from tinsmith.passes.prune.importance.apoz import ActiveShare
from tinsmith.passes.prune.importance.batch_norm_scale import scale_magnitude
from tinsmith.passes.prune.importance.geometric_median import distance_to_others
from tinsmith.passes.prune.importance.l1 import l1_norm
from tinsmith.passes.prune.importance.l2 import l2_norm
from tinsmith.passes.prune.importance.mean_activation import MeanActivation
from tinsmith.passes.prune.importance.normalization import normalized
from tinsmith.passes.prune.importance.random_baseline import random_scores
from tinsmith.passes.prune.importance.reconstruction_error import (
    Consumer,
    damping_for,
    reconstruction_error,
)
from tinsmith.passes.prune.importance.weights import batch_norm_scales, produced_weights, unit_rows
from tinsmith.passes.prune.recovery.least_squares import Moments

WEIGHT_CRITERIA: Mapping[str, Callable[[Sequence[np.ndarray]], np.ndarray]] = {
    "l1": l1_norm,
    "l2": l2_norm,
    "geometric-median": distance_to_others,
}
_OBSERVED = {"activation": MeanActivation, "apoz": ActiveShare}
# Rows of a tensor that count for its second moments, of each sample.
_ROWS = 256


@dataclass(frozen=True)
class Scores:
    """Scores by group index, each `[units]`, on one scale; `kind` as `Ranking` takes it."""

    of: Mapping[int, np.ndarray]
    kind: Kind
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """What scores are computed from. `source` is needed by the criteria that look at data.

    `normalization` is one of `NORMALIZATIONS`.
    """

    criterion: str
    normalization: str
    workshop: Workshop
    source: CalibrationSource | None = None
    seed: int = 0
    progress: Progress | None = None

    def scores(self, module: tvm.IRModule, groups: Groups) -> Scores:
        """The scores of all groups that may be pruned; `groups` are those of `module`.

        Raises ModelError if the model has nothing that the criterion looks at.
        """
        chosen = groups.prunable
        if self.criterion == "reconstruction":
            return self._reconstruction(module, groups, chosen)
        if self.criterion in _OBSERVED:
            found, notes = self._activations(module, groups, chosen)
        elif self.criterion == "random":
            found = {g.index: random_scores(g.units, self.seed + g.index) for g in chosen}
            notes = ()
        elif self.criterion == "taylor":
            if self.source is None:
                raise ValueError("taylor needs samples")
            found = taylor_scores(module, groups, chosen, self.source, self.progress)
            notes = ()
        elif self.criterion == "batch-norm":
            found, notes = _batch_norm(groups, chosen)
        else:
            score = WEIGHT_CRITERIA[self.criterion]
            found = {g.index: score(produced_weights(groups, g)) for g in chosen}
            notes = ()
        scaled = {index: normalized(scores, self.normalization) for index, scores in found.items()}
        return Scores(scaled, "additive", notes)

    def _reconstruction(
        self, module: tvm.IRModule, groups: Groups, chosen: Sequence[Group]
    ) -> Scores:
        readers = {group.index: _dense_readers(groups, group) for group in chosen}
        moments = {m.data: (Moments(), c.axis) for found in readers.values() for m, c in found}
        self._observe(module, moments.keys(), lambda tensors: _add_moments(tensors, moments))
        scores: dict[int, np.ndarray] = {}
        notes: list[str] = []
        for done, group in enumerate(chosen):
            if self.progress is not None:
                self.progress(f"score {group.name}", done / len(chosen))
            consumers = [
                _consumer(groups, member, moments[member.data][0])
                for member, _ in readers[group.index]
            ]
            if consumers:
                rows = min(moments[member.data][0].count for member, _ in readers[group.index])
                inputs = max(len(consumer.weights) for consumer in consumers)
                scores[group.index] = reconstruction_error(
                    consumers, damping=damping_for(inputs, rows)
                )
            else:
                norms = np.sort(l2_norm(produced_weights(groups, group)))
                ranks = np.argsort(np.argsort(l2_norm(produced_weights(groups, group))))
                scores[group.index] = normalized(np.cumsum(norms), "max")[ranks]
                notes.append(f"{group.name}: no dense product reads it; scored by its weights")
        return Scores(scores, "cumulative", tuple(notes))

    def _activations(
        self, module: tvm.IRModule, groups: Groups, chosen: Sequence[Group]
    ) -> tuple[dict[int, np.ndarray], tuple[str, ...]]:
        """Means over the tensors that consumers read; others of the group if there are none."""
        make = _OBSERVED[self.criterion]
        watched: dict[int, list[Channels]] = {}
        for group in chosen:
            read = {member.data for member in group.role("consumes")}
            found = [c for c in group.tensors if c.tensor in read] or list(group.tensors[-1:])
            watched[group.index] = found
        observers = {c.tensor: make(c.axis) for found in watched.values() for c in found}

        def update(tensors: Mapping[str, np.ndarray]) -> None:
            for name, observer in observers.items():
                observer.update(tensors[name])

        self._observe(module, observers.keys(), update)
        scores = {
            index: np.mean([observers[c.tensor].scores[c.indices].mean(1) for c in found], axis=0)
            for index, found in watched.items()
        }
        return scores, ()

    def _observe(
        self,
        module: tvm.IRModule,
        tensors: Iterable[str],
        update: Callable[[Mapping[str, np.ndarray]], None],
    ) -> None:
        if self.source is None:
            raise ValueError(f"{self.criterion} needs samples")
        names = list(tensors)
        if not names:
            return
        with ObservedGraph(module, self.workshop, names) as observed:
            for index, sample in enumerate(self.source):
                if self.progress is not None:
                    self.progress("statistics", index / (self.source.count or index + 1))
                update(observed.run(sample))


def _dense_readers(groups: Groups, group: Group) -> list[tuple[Member, Channels]]:
    """Products whose weights have a row for each channel of their data, and those channels."""
    channels = {c.tensor: c for c in group.tensors}
    return [
        (member, channels[member.data])
        for member in group.role("consumes")
        if member.data in channels and np.array_equal(channels[member.data].indices, member.indices)
    ]


def _add_moments(
    tensors: Mapping[str, np.ndarray], moments: Mapping[str, tuple[Moments, int]]
) -> None:
    for name, (sums, axis) in moments.items():
        rows = np.moveaxis(tensors[name], axis, -1)
        rows = rows.reshape(1, -1, rows.shape[-1])
        rows = rows[:, :: max(1, rows.shape[1] // _ROWS)]
        sums.update(rows, np.empty((*rows.shape[:2], 0)))


def _consumer(groups: Groups, member: Member, moments: Moments) -> Consumer:
    """A product as the criterion sees it: the taps of a convolution as so many more outputs.

    Taps are taken as uncorrelated: the moments of all of them together would be larger by the
    square of their number, and rank units the same for all one can tell.
    """
    covariance = moments.covariances()[0][0]
    own = member.indices.ravel()
    array = np.moveaxis(groups.constants[member.constant], member.axis, 0)
    # Channels of other groups in a concatenation stay as they are.
    return Consumer(
        covariance[np.ix_(own, own)],
        array[own].reshape(len(own), -1),
        np.arange(len(own)).reshape(member.indices.shape),
    )


def _batch_norm(
    groups: Groups, chosen: Sequence[Group]
) -> tuple[dict[int, np.ndarray], tuple[str, ...]]:
    found: dict[int, np.ndarray] = {}
    notes: list[str] = []
    scales = {group.index: batch_norm_scales(groups, group) for group in chosen}
    if not any(scales.values()):
        raise ModelError(
            "the model has no batch normalisation left: choose another criterion, such as l2"
        )
    for group in chosen:
        if scales[group.index]:
            found[group.index] = scale_magnitude(scales[group.index])
        else:
            found[group.index] = l2_norm(produced_weights(groups, group))
            notes.append(f"{group.name}: no batch normalisation; scored by its weights")
    return found, tuple(notes)


__all__ = ["WEIGHT_CRITERIA", "Scores", "Scoring", "unit_rows"]
