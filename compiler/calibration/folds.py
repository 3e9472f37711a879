"""Samples to learn from and samples to judge by: whole photographs, and never the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinsmith.compiler.calibration.choice import RandomSource
from tinsmith.compiler.calibration.labels import read_labels
from tinsmith.compiler.calibration.source import CalibrationSource, others, spread

# One sample in so many is held out where the data leave no others.
HELD_OUT_EVERY = 4
# Fewer samples than this are not split: a figure of two samples says nothing.
_LEAST_TO_SPLIT = 16
# More samples make a figure hardly surer: of 500 it is one or two points.
_MOST_JUDGED = 500


@dataclass(frozen=True)
class Folds:
    """A source to learn from and one to judge by.

    `unseen` tells that they have no sample in common; it is false for data that are too few.
    """

    learn: CalibrationSource
    judge: CalibrationSource
    unseen: bool


class SomeSamples(CalibrationSource):
    """The samples of `source` that `chosen_by` says, by their number."""

    def __init__(
        self, source: CalibrationSource, chosen_by: Callable[[int], bool], label: str
    ) -> None:
        super().__init__(label, source.signature)
        self.notes = source.notes
        self.source = source
        self._chosen_by = chosen_by

    @property
    def count(self) -> int | None:
        if self.source.count is None:
            return None
        return sum(map(self._chosen_by, range(self.source.count)))

    @property
    def rows(self) -> int | None:
        return self.source.rows

    @property
    def chosen(self) -> Sequence[int]:
        return [row for place, row in enumerate(self.source.chosen) if self._has(place)]

    def labels_of(self, labels: np.ndarray) -> np.ndarray:
        """Those of the rows of these samples, of one label for each row of the whole source."""
        return labels[[self._has(place) for place in range(len(labels))]]

    def _has(self, place: int) -> bool:
        """Whether the row at a place of the source belongs to one of the samples."""
        size = next((shape[0] for shape, _ in self.signature.values() if shape), 1)
        return self._chosen_by(place // size)

    def _samples(self) -> Iterator[Mapping[str, np.ndarray]]:
        for index, sample in enumerate(self.source):
            if self._chosen_by(index):
                yield sample


def held_out(index: int) -> bool:
    """Whether a sample of that number is one to judge by."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def folds(source: CalibrationSource) -> Folds:
    """`source` to learn from, and others to judge by.

    Rows of its data that a limit leaves out are the others, if they are enough: then nothing is
    lost. Else every fourth sample of `source` is held out. Fewer than 16 samples stay together.
    """
    if isinstance(source, RandomSource):
        return Folds(source, source.others(), True)
    rest = source.left_out
    label = f"held-out samples of {source.label}"
    if len(rest) >= max(_LEAST_TO_SPLIT, len(source.chosen) // HELD_OUT_EVERY):
        chosen = [rest[index] for index in spread(len(rest), _MOST_JUDGED)]
        judge = source.with_rows(chosen)
        judge.label = label
        return Folds(source, judge, True)
    if source.count is not None and source.count < _LEAST_TO_SPLIT:
        return Folds(source, source, False)
    return Folds(_without_held_out(source), SomeSamples(source, held_out, label), True)


@dataclass(frozen=True)
class CrossFold:
    """Some samples to learn from, and all others of the same source to judge by."""

    learn: SomeSamples
    judge: SomeSamples


def cross_folds(source: CalibrationSource) -> tuple[CrossFold, ...]:
    """Every sample of `source` is one to judge by in one fold, and one to learn from in all others.

    Source: Stone 1974, "Cross-Validatory Choice and Assessment of Statistical Predictions".
    """
    return tuple(_fold(source, number) for number in range(HELD_OUT_EVERY))


def _fold(source: CalibrationSource, number: int) -> CrossFold:
    def judges(index: int) -> bool:
        return index % HELD_OUT_EVERY == number

    return CrossFold(
        SomeSamples(source, lambda index: not judges(index), source.label),
        SomeSamples(source, judges, source.label),
    )


def without(source: CalibrationSource, judge: CalibrationSource) -> CalibrationSource:
    """All samples of `source`, which reads the data without a limit, that `judge` does not read.

    `judge` is that of `folds` of a source of the same data, with a limit or without.
    """
    if source.rows is not None and judge.rows is not None:
        return source.with_rows(others(source.rows, judge.chosen))
    return source if isinstance(source, RandomSource) else _without_held_out(source)


def labels_for(labels: Any, data: Any, source: CalibrationSource) -> np.ndarray | None:
    """`read_labels` for a source that may be some samples of another."""
    if not isinstance(source, SomeSamples):
        return read_labels(labels, data, source)
    found = read_labels(labels, data, source.source)
    return None if found is None else source.labels_of(found)


def _without_held_out(source: CalibrationSource) -> SomeSamples:
    return SomeSamples(source, lambda index: not held_out(index), source.label)


def interval(share: float, count: int) -> tuple[float, float]:
    """Between which shares the true one lies with 95 % confidence, if `count` samples show it.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    width = np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    width *= z / (1 + z * z / count)
    return max(0.0, float(centre - width)), min(1.0, float(centre + width))


def told_of_samples(share: float, count: int, what: str = "agreement") -> str:
    """How sure a share of so many samples is; a warning where they are few."""
    low, high = interval(share, count)
    warning = "warning: " if count < 100 else ""
    return (
        f"{warning}{what} rests on {count} held-out samples: the true one is likely between "
        f"{low:.0%} and {high:.0%}" + ("; pass more with --evaluation" if warning else "")
    )
