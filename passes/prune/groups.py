"""Dependency groups: which channels of which constants go together when a graph shrinks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["produces", "scales", "consumes"]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one constant that a group runs through.

    `constant` is its position in `Groups.constants`. Removing unit `u` removes the positions
    `indices[u]` of `axis`; `indices` is int64 of shape `[units, block]`.

    `role` says what the constant does with the channel: it "produces" it (output channels of
    a product, biases, parameters of a normalisation, embeddings: a channel of which all these
    are 0 is 0), it "scales" it (factors, divisors, slopes), or it "consumes" it (input
    channels of a product).

    `operator` reads the constant and computes `tensor` from `data`; both are names as
    `tinsmith.passes.graph.fused_groups.unique_names` gives them (`data` is empty for a table of
    embeddings). Where the channel lies in them, `Group.tensors` tells. `reads_zero` tells a
    consumer whose channel is 0 once the producers are.
    """

    constant: int
    axis: int
    indices: np.ndarray
    role: Role
    operator: str
    tensor: str
    data: str
    reads_zero: bool = True


@dataclass(frozen=True, eq=False)
class Channels:
    """One axis of one computed tensor that a group runs through, like `Member`."""

    tensor: str
    axis: int
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels, or heads) of which each goes through all members at once.

    `frozen` is why none of them may be removed, empty if they may. `inexact` is why a graph
    without a unit computes something else than a graph where the unit is zero (the statistics
    of a layer normalisation, for example), empty if it does not. `name` is for reports: a
    tensor near the first producer.
    """

    index: int
    name: str
    units: int
    members: tuple[Member, ...]
    tensors: tuple[Channels, ...]
    frozen: str = ""
    inexact: str = ""

    def role(self, role: Role) -> tuple[Member, ...]:
        """The members of that role."""
        return tuple(member for member in self.members if member.role == role)


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a module, in the order of the graph, and the values of its constants.

    `constants` holds every constant of `main` once, in the order in which it is first read;
    `replace_constants` gives a module with other values for some.
    """

    groups: tuple[Group, ...]
    constants: tuple[np.ndarray, ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups that are not frozen."""
        return tuple(group for group in self.groups if not group.frozen)


def checked(groups: Groups, keep: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The units to keep, sorted, of the groups that lose any.

    Raises ValueError for a group that does not exist or is frozen, for units that it does not
    have, and if none would be left.
    """
    found: dict[int, np.ndarray] = {}
    for index, units in keep.items():
        if not 0 <= index < len(groups):
            raise ValueError(f"there is no group {index}: the module has {len(groups)}")
        group = groups[index]
        kept = np.unique(np.asarray(units, dtype=np.int64))
        if kept.size == 0:
            raise ValueError(f"group {index} ({group.name}) has to keep a unit")
        if kept[0] < 0 or kept[-1] >= group.units:
            raise ValueError(f"group {index} ({group.name}) has units 0 to {group.units - 1}")
        if kept.size == group.units:
            continue
        if group.frozen:
            raise ValueError(f"group {index} ({group.name}) cannot be pruned: {group.frozen}")
        found[index] = kept
    return found
