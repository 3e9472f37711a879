"""Where samples come from: the interface of all sources, and the checks on every sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.inputs import Signature

Sample = dict[str, np.ndarray]


class CalibrationSource(ABC):
    """Samples for a model, read one by one; can be iterated again.

    A sample is a dict from input names to arrays of exactly the shape and dtype that
    `signature` declares; the names come in its order. Iterating raises InputError when a
    sample is not like that, holds NaN or infinity, or when there is none. `label` names the
    source in messages, `notes` are for the report.
    """

    def __init__(self, label: str, signature: Signature) -> None:
        self.label = label
        self.signature = signature
        self.notes: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        """How many samples there are, if that is known."""
        return None

    @property
    def rows(self) -> int | None:
        """How many rows the data have, of which a model of a larger batch takes several at once."""
        return None

    @property
    def chosen(self) -> Sequence[int]:
        """The rows that are read, in order, if `rows` is known; the last batch is filled up."""
        return ()

    @property
    def left_out(self) -> Sequence[int]:
        """The rows that a limit leaves out, in order, if `with_rows` can read them."""
        return ()

    def with_rows(self, rows: Sequence[int]) -> CalibrationSource:
        """A source of other rows of the same data; only if `left_out` is not empty."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sample]:
        index = -1
        for index, sample in enumerate(self._samples()):
            yield self._checked(sample, index)
        if index < 0:
            raise InputError(f"{self.label}: the set of samples is empty")

    @abstractmethod
    def _samples(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The samples, unchecked."""

    def _checked(self, sample: Mapping[str, np.ndarray], index: int) -> Sample:
        where = f"{self.label}: sample {index}"
        check_names(sample, self.signature, where)
        result: Sample = {}
        for name, (shape, dtype) in self.signature.items():
            array = np.ascontiguousarray(sample[name])
            if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
                raise InputError(
                    f"{where}: input {name} is {array.dtype} {array.shape}, "
                    f"the model takes {dtype} {tuple(shape)}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"{where}: input {name} holds NaN or infinity")
            result[name] = array
        return result


def check_names(given: Mapping[str, object], signature: Signature, where: str) -> None:
    """Raise InputError unless exactly the model's inputs are given."""
    missing = [name for name in signature if name not in given]
    if missing:
        raise InputError(
            f"{where}: input {missing[0]} is missing; the model takes {_all(signature)}"
        )
    unknown = [name for name in given if name not in signature]
    if unknown:
        raise InputError(
            f"{where}: the model has no input {unknown[0]}; it takes {_all(signature)}"
        )


def check_limit(limit: int | None) -> None:
    """Raise ConfigError unless `limit` is None or a positive number of samples."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"the number of calibration samples must be at least 1, not {limit!r}")


def spread(count: int, limit: int | None) -> list[int]:
    """Up to `limit` of `count` indices, evenly spaced: data often come sorted by class."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def others(count: int, chosen: Sequence[int]) -> list[int]:
    """The indices below `count` that are not among `chosen`."""
    known = set(chosen)
    return [index for index in range(count) if index not in known]


def batches(rows: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Rows stacked by `size`; the last batch is filled up by repeating its last row."""
    batch: list[np.ndarray] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch + [batch[-1]] * (size - len(batch)))


def _all(signature: Signature) -> str:
    return ", ".join(signature)
