"""The source of samples that a user means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.calibration.arrays import (
    IterableSource,
    StackedSource,
    in_memory,
    stored_arrays,
)
from tinsmith.compiler.calibration.images import ImageFolderSource
from tinsmith.compiler.calibration.preprocessing import Preprocessing
from tinsmith.compiler.calibration.source import CalibrationSource, Sample, check_limit
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.inputs import Domains, Signature, random_inputs

RANDOM = "random"
_RANDOM_SAMPLES = 16

CalibrationData = (
    str | Path | np.ndarray | Mapping[str, np.ndarray] | Iterable[Any] | Callable[[], Iterable[Any]]
)


class RandomSource(CalibrationSource):
    """Random inputs: enough to try a compilation, not to keep a model's accuracy.

    `asked` tells whether the caller named them, or they stand in for data that are not needed.
    """

    def __init__(
        self,
        signature: Signature,
        limit: int | None,
        bounds: Domains,
        seed: int,
        asked: bool = True,
    ) -> None:
        super().__init__("--calibration random" if asked else "random inputs", signature)
        self._count = limit or _RANDOM_SAMPLES
        self._bounds = bounds
        self._seed = seed
        self.notes = (
            "warning: calibrated with random data, so the ranges are guesses and the accuracy "
            "is not known; pass real data with --calibration"
            if asked
            else "compared with float on random inputs; pass real data with --calibration",
        )

    @property
    def count(self) -> int:
        return self._count

    def others(self) -> RandomSource:
        """As many samples with other seeds."""
        other = copy(self)
        other._seed = self._seed + self._count
        return other

    def _samples(self) -> Iterator[Sample]:
        for index in range(self._count):
            yield random_inputs(self.signature, self._bounds, self._seed + index)


def open_calibration(
    data: CalibrationData | None,
    signature: Signature,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    bounds: Domains | None = None,
    seed: int = 0,
    required: bool = True,
    option: str = "--calibration",
) -> CalibrationSource:
    """A source of samples from what `--calibration` or a Python caller names.

    `data` is a folder of pictures, an .npz or .npy file, "random", an array or a dict of
    arrays whose first axis counts samples, an iterable of samples, or a function
    that returns one. `signature` maps the model's inputs to (shape, dtype). `limit`
    bounds the number of samples read. `bounds` and `seed` are for random data only, as
    `random_inputs` takes them. Where data are not `required`, None stands for a few random
    inputs. `option` is what messages call the data.

    Raises ConfigError for an option that makes no sense, also if required `data` are None, and
    InputError for data that are not there, empty, or do not fit the model.
    """
    check_limit(limit)
    preprocessing = preprocessing or Preprocessing()
    if data is None and not required:
        return RandomSource(signature, None, bounds or {}, seed, asked=False)
    if data is None:
        raise ConfigError(
            "quantising activations needs data: pass --calibration with a folder of pictures, an "
            ".npz or .npy file, or `random` to try without"
        )
    if isinstance(data, str | Path):
        return _from_path(data, signature, preprocessing, limit, bounds or {}, seed, option)
    label = f"{option.removeprefix('--')} data"
    if isinstance(data, np.ndarray):
        if len(signature) != 1:
            raise InputError(f"{label}: one array for {len(signature)} inputs; pass a dict")
        data = {next(iter(signature)): data}
    if isinstance(data, Mapping):
        arrays = {str(name): in_memory(np.asarray(array)) for name, array in data.items()}
        return StackedSource(arrays, signature, preprocessing, limit, label)
    if not callable(data) and not hasattr(data, "__iter__"):
        raise ConfigError(
            f"{label} must be a path, arrays or an iterable, not {type(data).__name__}"
        )
    return IterableSource(data, signature, preprocessing, limit, label)


def _from_path(
    data: str | Path,
    signature: Signature,
    preprocessing: Preprocessing,
    limit: int | None,
    bounds: Domains,
    seed: int,
    option: str,
) -> CalibrationSource:
    if data == RANDOM:
        return RandomSource(signature, limit, bounds, seed)
    path = Path(data)
    label = f"{option} {data}"
    if path.is_dir():
        return ImageFolderSource(path, signature, preprocessing, limit, label)
    if not path.exists():
        raise InputError(f"{label}: no such file or folder")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"{label}: neither a folder of pictures nor an .npz or .npy file")
    return StackedSource(stored_arrays(path, signature), signature, preprocessing, limit, label)
