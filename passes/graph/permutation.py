"""Tensors that are kept permuted, and how permutations pass through reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax

from tinsmith.passes.graph.tensors import static_shape


@dataclass(frozen=True)
class Permuted:
    """A tensor stored otherwise than it is meant: `meant = permute_dims(stored, axes)`.

    Axis `i` of the tensor as the original module means it is axis `axes[i]` of
    the tensor as it is stored.
    """

    stored: relax.Expr
    axes: tuple[int, ...]

    @property
    def is_identity(self) -> bool:
        """Whether stored and meant are the same."""
        return self.axes == tuple(range(len(self.axes)))

    @property
    def meant_shape(self) -> tuple[int, ...]:
        """Shape of the tensor as it is meant."""
        stored = static_shape(self.stored) or ()
        return tuple(stored[axis] for axis in self.axes)


def plain(expr: relax.Expr) -> Permuted:
    """A tensor that is stored as it is meant."""
    return Permuted(expr, tuple(range(len(static_shape(expr) or ()))))


def same_storage(shape: Sequence[int], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two axis orders of a tensor of meant `shape` put its elements in the same order."""

    def order(axes: Sequence[int]) -> list[int]:
        # The meant axes of extent above 1, in the order in which they are stored.
        return sorted((i for i in range(len(shape)) if shape[i] != 1), key=lambda i: axes[i])

    return order(first) == order(second)


@dataclass(frozen=True)
class _Group:
    """Neighbouring axes of extent above 1 that a reshape turns into other neighbouring axes."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def _reshape_groups(before: Sequence[int], after: Sequence[int]) -> list[_Group] | None:
    """Split a reshape into independent parts; None if an extent is zero."""
    if 0 in before or 0 in after:
        return None
    left = [axis for axis, extent in enumerate(before) if extent != 1]
    right = [axis for axis, extent in enumerate(after) if extent != 1]
    groups = []
    i = j = 0
    while i < len(left):
        start_i, start_j = i, j
        product_left, product_right = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while product_left != product_right:
            if product_left < product_right:
                product_left *= before[left[i]]
                i += 1
            else:
                product_right *= after[right[j]]
                j += 1
        groups.append(_Group(tuple(left[start_i:i]), tuple(right[start_j:j])))
    return groups


def reshape_stored(
    value: Permuted, target: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How to reshape a permuted tensor to the meant shape `target` without moving elements.

    The answer is the new stored shape and the axes that make it mean `target`:
    with `value` meaning (1, 16, 7, 5) stored as (1, 7, 5, 16), the target
    (1, 16, 35) is stored as (1, 35, 16) with axes (0, 2, 1). None if the
    elements would have to move.
    """
    groups = _reshape_groups(value.meant_shape, target)
    if groups is None:
        return None
    shape = value.meant_shape
    stored_order = sorted(
        (i for i in range(len(shape)) if shape[i] != 1), key=value.axes.__getitem__
    )
    # The groups must be stored one after the other, each in its own order.
    order: list[int] = []
    position = 0
    while position < len(stored_order):
        index = next(k for k, g in enumerate(groups) if stored_order[position] in g.before)
        group = groups[index].before
        if tuple(stored_order[position : position + len(group)]) != group:
            return None
        order.append(index)
        position += len(group)
    # An axis of extent 1 is stored where it is meant, as far as the others allow it.
    sequence = [axis for index in order for axis in groups[index].after]
    for axis, extent in enumerate(target):
        if extent == 1:
            sequence.insert(min(axis, len(sequence)), axis)
    axes = [0] * len(sequence)
    for stored_axis, meant_axis in enumerate(sequence):
        axes[meant_axis] = stored_axis
    return tuple(target[axis] for axis in sequence), tuple(axes)
