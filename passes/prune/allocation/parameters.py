"""The number of parameters as a function of the widths of the groups."""

from __future__ import annotations

from collections import defaultdict

from tinsmith.passes.prune.allocation.cost import CostModel, axes_of, proportional
from tinsmith.passes.prune.groups import Groups, Member


def parameter_model(groups: Groups) -> CostModel:
    """Counts the elements of all constants of the module that `groups` were found in."""
    through: dict[int, list[tuple[int, Member]]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            through[member.constant].append((group.index, member))
    terms = [
        proportional(
            f"{members[0][1].tensor}#{constant}",
            axes_of(groups.constants[constant].shape, members),
            groups.constants[constant].size,
        )
        for constant, members in through.items()
    ]
    whole = [c.size for position, c in enumerate(groups.constants) if position not in through]
    return CostModel("parameters", "", tuple(terms), float(sum(whole)))
