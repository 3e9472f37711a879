"""Which elements of an array share the parameters of a number format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class FormatError(ValueError):
    """A number format cannot be made, or does not fit an array; says why."""


@dataclass(frozen=True)
class PerTensor:
    """One set of parameters for the whole array; parameters have shape ()."""


@dataclass(frozen=True)
class PerChannel:
    """One set for each index along `axis`; parameters have shape (extent of the axis,)."""

    axis: int


@dataclass(frozen=True)
class PerGroup:
    """One set for each run of `size` elements along `axis`, at each index of the other axes.

    Parameters have the array's shape, with the axis divided by `size`. The size must
    divide the axis; `largest_group` finds one that does.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FormatError(f"a group needs at least 1 element, not {self.size}")


Granularity = PerTensor | PerChannel | PerGroup
PER_TENSOR = PerTensor()


def largest_group(extent: int, at_most: int) -> int:
    """The largest divisor of `extent` that does not exceed `at_most`."""
    return max(size for size in range(1, min(extent, at_most) + 1) if extent % size == 0)


def split(array: np.ndarray, granularity: Granularity) -> np.ndarray:
    """The array as (blocks, elements of a block); the elements of a block share parameters.

    Raises FormatError when the granularity does not fit the array.
    """
    if isinstance(granularity, PerTensor):
        return array.reshape(1, -1)
    axis = _checked_axis(array.shape, granularity.axis)
    if isinstance(granularity, PerChannel):
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    _check_group(array.shape, axis, granularity.size)
    return np.moveaxis(array, axis, -1).reshape(-1, granularity.size)


def join(blocks: np.ndarray, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """The inverse of `split`: an array of `shape` from its blocks."""
    if isinstance(granularity, PerTensor):
        return blocks.reshape(shape)
    axis = _checked_axis(shape, granularity.axis)
    rest = shape[:axis] + shape[axis + 1 :]
    if isinstance(granularity, PerChannel):
        return np.ascontiguousarray(np.moveaxis(blocks.reshape(shape[axis], *rest), 0, axis))
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(*rest, shape[axis]), -1, axis))


def parameter_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The shape of one parameter (a scale, say) of an array of `shape`."""
    if isinstance(granularity, PerTensor):
        return ()
    axis = _checked_axis(shape, granularity.axis)
    if isinstance(granularity, PerChannel):
        return (shape[axis],)
    _check_group(shape, axis, granularity.size)
    return (*shape[:axis], shape[axis] // granularity.size, *shape[axis + 1 :])


def arrange(per_block: np.ndarray, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """Values (blocks, ...) in the order of `split` as a parameter: parameter_shape + (...)."""
    target = parameter_shape(shape, granularity)
    inner = per_block.shape[1:]
    if not isinstance(granularity, PerGroup):
        return per_block.reshape((*target, *inner))
    axis = _checked_axis(shape, granularity.axis)
    rest = target[:axis] + target[axis + 1 :]
    moved = per_block.reshape(*rest, target[axis], *inner)
    return np.ascontiguousarray(np.moveaxis(moved, len(rest), axis))


def flatten(parameter: np.ndarray, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """The inverse of `arrange`: (blocks, ...) in the order of `split`."""
    target = parameter_shape(shape, granularity)
    inner = parameter.shape[len(target) :]
    if isinstance(granularity, PerGroup):
        axis = _checked_axis(shape, granularity.axis)
        parameter = np.moveaxis(parameter, axis, len(target) - 1)
    return parameter.reshape((-1, *inner))


def _checked_axis(shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise FormatError(f"axis {axis} of an array of shape {shape} does not exist")
    return axis % len(shape)


def _check_group(shape: tuple[int, ...], axis: int, size: int) -> None:
    if shape[axis] % size:
        raise FormatError(
            f"groups of {size} do not divide axis {axis} of shape {shape}; "
            f"choose a divisor such as {largest_group(shape[axis], size)}"
        )
