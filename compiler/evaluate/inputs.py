"""Random inputs that a model accepts: floats of unit scale, integers inside their tables.

What an input may be is told by `Domain`, which the front end finds out: an index out of range is
undefined in every runtime, as is an integer divided by zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinsmith.compiler.errors import InputError, ModelError

if TYPE_CHECKING:
    from tinsmith.compiler.module.manifest import Manifest, TensorEntry

Signature = Mapping[str, tuple[tuple[int, ...], str]]

# Integers without a domain: 0 and 1 fit every mask, flag and index.
_UNKNOWN = (0, 1)
# So many integers are drawn from a domain that is open to one side.
_SOME = 8


@dataclass(frozen=True)
class Domain:
    """The smallest and largest value that an input may have, both included.

    Along `distinct_axis` no value comes twice: what is scattered to the same place twice may
    end there in any order.
    """

    low: float = -math.inf
    high: float = math.inf
    distinct_axis: int | None = None

    @classmethod
    def below(cls, count: int) -> Domain:
        """The integers from 0 on, `count` of them."""
        return cls(0, count - 1)

    def within(self, other: Domain) -> Domain:
        """What is in both; the other alone if nothing is."""
        axis = self.distinct_axis if self.distinct_axis is not None else other.distinct_axis
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Domain(low, high, axis) if low <= high else other

    def floats(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal, folded into a domain of one bound, or uniform between two."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return generator.uniform(self.low, self.high, shape)
        values = generator.standard_normal(shape)
        if math.isfinite(self.low):
            return self.low + np.abs(values)
        return self.high - np.abs(values) if math.isfinite(self.high) else values

    def integers(
        self, generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        """Uniform; 0 and 1 where neither bound is known."""
        limits = np.iinfo(dtype)
        low = math.ceil(self.low) if math.isfinite(self.low) else None
        high = math.floor(self.high) if math.isfinite(self.high) else None
        if low is None and high is None:
            low, high = _UNKNOWN
        elif low is None:
            low = min(0, high or 0) if (high or 0) >= 0 else (high or 0) - _SOME + 1
        elif high is None:
            high = low + _SOME - 1
        low, high = max(int(low), int(limits.min)), min(int(high or 0), int(limits.max))
        if low > high:
            low, high = _UNKNOWN
        axis = self.distinct_axis
        if axis is not None and shape and shape[axis] <= high - low + 1:
            places = (*shape[:axis], high - low + 1, *shape[axis + 1 :])
            order = np.argsort(generator.random(places), axis)
            return low + order.take(range(shape[axis]), axis)
        return generator.integers(low, high, shape, endpoint=True)


Domains = Mapping[str, Domain]


def random_inputs(signature: Signature, domains: Domains, seed: int) -> dict[str, np.ndarray]:
    """One array for each input; `signature` maps its name to (shape, numpy dtype name).

    Floats are standard normal and integers 0 or 1 where no domain says otherwise, booleans fair.
    Raises ModelError for a dtype that is none of these.
    """
    generator = np.random.default_rng(seed)
    result: dict[str, np.ndarray] = {}
    for name, (shape, dtype_name) in signature.items():
        domain = domains.get(name, Domain())
        try:
            dtype = np.dtype(dtype_name)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind == "f":
            result[name] = np.asarray(domain.floats(generator, shape)).astype(dtype)
        elif dtype.kind in "iu":
            result[name] = np.asarray(domain.integers(generator, shape, dtype)).astype(dtype)
        elif dtype.kind == "b":
            result[name] = generator.integers(0, 2, shape).astype(bool)
        else:
            raise ModelError(f"input {name}: no random values of dtype {dtype_name}")
    return result


def chosen_sizes(manifest: Manifest, wanted: Mapping[str, int]) -> dict[str, int]:
    """The size of each open dimension of a module: `wanted`, or else the smallest.

    Raises InputError for a dimension that the module has not, and for a size out of its bounds.
    """
    bounds = {dim.name: dim for dim in manifest.dims}
    for name, size in wanted.items():
        if name not in bounds:
            known = ", ".join(bounds) or "none"
            raise InputError(f"{manifest.name}: no dimension {name!r} is open; open are: {known}")
        if not bounds[name].low <= size <= bounds[name].high:
            raise InputError(
                f"{manifest.name}: {name} is {size}, the module takes {bounds[name].low} to "
                f"{bounds[name].high}"
            )
    return {name: wanted.get(name, dim.low) for name, dim in bounds.items()}


def signature_of(tensors: Iterable[TensorEntry]) -> Signature:
    """The signature of a module's inputs, as its manifest lists them."""
    return {t.name: (tuple(int(size) for size in t.shape), t.dtype) for t in tensors}
