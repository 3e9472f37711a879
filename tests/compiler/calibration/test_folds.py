"""Samples to learn from and samples to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.calibration import CalibrationSource, RandomSource, folds, open_calibration
from tinsmith.compiler.calibration.folds import (
    SomeSamples,
    interval,
    labels_for,
    told_of_samples,
    without,
)
from tinsmith.compiler.calibration.plausibility import warnings

SIGNATURE = {"x": ((1, 3), "float32")}


def numbered(count: int) -> np.ndarray:
    """Row i is all i."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)


def read(source: CalibrationSource) -> list[int]:
    return [int(value) for sample in source for value in sample["x"][:, 0]]


def test_rows_that_a_limit_leaves_out_judge() -> None:
    source = open_calibration(numbered(100), SIGNATURE, limit=20)
    split = folds(source)
    assert split.unseen and split.learn is source
    assert len(read(split.judge)) == 80 and not set(read(split.judge)) & set(read(source))
    assert "held-out" in split.judge.label
    labels = labels_for(np.arange(100), None, split.judge)
    assert labels is not None and labels.tolist() == read(split.judge)
    rest = without(open_calibration(numbered(100), SIGNATURE), split.judge)
    assert read(rest) == read(source)


def test_every_fourth_sample_is_held_out_of_all() -> None:
    split = folds(open_calibration(numbered(22), SIGNATURE))
    assert read(split.judge) == [3, 7, 11, 15, 19]
    assert sorted(read(split.learn) + read(split.judge)) == list(range(22))
    assert (split.learn.count, split.judge.count) == (17, 5)
    labels = labels_for(np.arange(22) * 2, None, split.judge)
    assert labels is not None and labels.tolist() == [6, 14, 22, 30, 38]
    everything = open_calibration(numbered(22), SIGNATURE)
    assert read(without(everything, split.judge)) == read(split.learn)


def test_batches_are_held_out_whole() -> None:
    signature = {"x": ((2, 3), "float32")}
    split = folds(open_calibration(numbered(39), signature))
    held = [6, 7, 14, 15, 22, 23, 30, 31, 38]
    assert read(split.judge) == [*held, 38]  # the last batch is filled up
    assert list(split.judge.chosen) == held
    labels = labels_for(np.arange(39), None, split.judge)
    assert labels is not None and labels.tolist() == held


def test_what_an_iterable_yields_is_split_by_number() -> None:
    def samples() -> Iterator[np.ndarray]:
        yield from numbered(9)

    source = open_calibration(samples, SIGNATURE)
    split = folds(source)
    assert read(split.judge) == [3, 7]
    assert read(without(open_calibration(samples, SIGNATURE), split.judge)) == read(split.learn)


def test_few_and_random_samples() -> None:
    few = folds(open_calibration(numbered(7), SIGNATURE))
    assert few.learn is few.judge and not few.unseen
    chance = folds(open_calibration("random", SIGNATURE))
    assert isinstance(chance.judge, RandomSource) and not isinstance(chance.judge, SomeSamples)
    first, second = next(iter(chance.learn))["x"], next(iter(chance.judge))["x"]
    assert not np.array_equal(first, second)


def test_pictures_and_their_names(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(16):
        image.new("L", (6, 5), index).save(tmp_path / f"{index:02}.png")
    signature = {"x": ((1, 1, 5, 6), "float32")}
    split = folds(open_calibration(tmp_path, signature))
    labels = labels_for("from-names", tmp_path, split.judge)
    assert labels is not None and labels.tolist() == [3, 7, 11, 15]
    image.new("L", (6, 5), 0).save(tmp_path / "16.png")
    limited = folds(open_calibration(tmp_path, signature, limit=1))
    labels = labels_for("from-names", tmp_path, limited.judge)
    assert labels is not None and labels.tolist() == list(range(1, 17))


def test_how_sure_a_share_is() -> None:
    low, high = interval(0.9, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    assert interval(1.0, 20)[1] == 1.0 and interval(1.0, 20)[0] < 0.85
    assert told_of_samples(0.9, 25).startswith("warning: agreement rests on 25 held-out samples")
    assert not told_of_samples(0.9, 400).startswith("warning")


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((9, 3)), "is zero in all samples"),
        (np.full((9, 3), 7.0), "is constant in every sample"),
        (np.tile([[1.0, 2.0, 3.0]], (9, 1)), "is the same in all samples"),
        (numbered(9) * [[1e6, 2e6, 3e6]], "reaches 2.1e+07"),
        (numbered(9)[:, :1] * [[1e-9, 2e-9, 3e-9]], "is never larger than"),
    ],
)
def test_implausible_data_are_told(array: np.ndarray, told: str) -> None:
    (warning,) = warnings(open_calibration(array.astype(np.float32), SIGNATURE))
    assert told in warning and "input x" in warning


def test_plausible_data_are_not() -> None:
    generator = np.random.default_rng(0)
    pixels = generator.uniform(0, 255, (9, 3)).astype(np.float32)
    assert warnings(open_calibration(pixels, SIGNATURE)) == ()
    # Indices may well be the same.
    tokens = {"x": ((1, 3), "int64")}
    assert warnings(open_calibration(np.ones((9, 3), np.int64), tokens)) == ()
