"""The values of constants by unit of a group: what criteria on weights look at."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.prune.groups import Group, Groups, Member

BATCH_NORM = "relax.nn.batch_norm"
_PRODUCTS = ("relax.nn.conv", "relax.matmul")


def unit_rows(array: np.ndarray, member: Member) -> np.ndarray:
    """The values of a constant that belong to each unit, `[units, values]`."""
    slices = np.moveaxis(array, member.axis, 0)[member.indices]
    return np.asarray(slices.reshape(len(member.indices), -1))


def produced_weights(groups: Groups, group: Group) -> list[np.ndarray]:
    """The weights of the products that compute the units, each `[units, values]`.

    Without such (an embedding, say) those of all constants that produce them.
    """
    members = group.role("produces")
    products = [member for member in members if member.operator.startswith(_PRODUCTS)]
    return [unit_rows(groups.constants[m.constant], m) for m in products or members]


def batch_norm_scales(groups: Groups, group: Group) -> list[np.ndarray]:
    """The scales (gamma) of the batch normalisations of the units, each `[units, block]`."""
    first: dict[str, Member] = {}
    for member in group.members:
        # The scale is the first of a normalisation's constants to be read.
        if member.operator == BATCH_NORM:
            known = first.setdefault(member.tensor, member)
            if member.constant < known.constant:
                first[member.tensor] = member
    return [unit_rows(groups.constants[m.constant], m) for m in first.values()]
