"""What a model ought to compute, from somebody else's implementation of it.

The front end that has read a model gives its reference (`ImportedModel.reference`); whoever
compares knows no more of it than is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tinsmith.compiler.evaluate import compare
from tinsmith.compiler.evaluate.compare import Difference, compare_all

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Settlement:
    """Who has the last word on some outputs: `expected` by `label`, and how far off they are."""

    label: str
    expected: Mapping[str, np.ndarray]
    tolerance: float
    differences: tuple[Difference, ...]
    note: str = ""

    @property
    def agrees(self) -> bool:
        return all(difference.agrees for difference in self.differences)


class Reference(Protocol):
    """An independent implementation of a model whose input shapes are fixed.

    A class that inherits from this one needs `label` and `run`; it may know more than what it
    inherits.
    """

    @property
    def label(self) -> str:
        """Who computes, with its version."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs by name, in the model's order; ModelError if there are none."""

    @property
    def notes(self) -> Sequence[str]:
        """What was odd about those that have run so far."""
        return ()

    def tolerance(self, *dtypes: str) -> float:
        """How far right outputs of these dtypes may be off, relative to the range of `run`'s."""
        return compare.tolerance(*dtypes)

    def settle(self, inputs: Arrays, actual: Arrays, expected: Arrays) -> Settlement:
        """Whether `actual` agrees with `expected`, what `run` has made of `inputs`."""
        tolerance = self.tolerance(*(array.dtype.name for array in expected.values()))
        found = compare_all(actual, expected, tolerance)
        return Settlement(self.label, expected, tolerance, found)

    def tensors(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Tensors on the way to the outputs, and these, by name; empty where nobody tells."""
        return {}


class ReferenceMaker(Protocol):
    """Makes the reference of one model, which takes time and memory."""

    def __call__(self, threads: int = 1, size: int | None = None) -> Reference:
        """A reference that computes with so many threads; ModelError if there cannot be one.

        `size` is that of the model's open dimension, by default the largest.
        """
