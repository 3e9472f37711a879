"""Structured pruning: what belongs together, what matters, how much of it goes, what remains."""

from tinsmith.passes.prune.analysis import find_groups
from tinsmith.passes.prune.constants import replace_constants
from tinsmith.passes.prune.groups import Channels, Group, Groups, Member
from tinsmith.passes.prune.shrink import Shrink, shrink
from tinsmith.passes.prune.zero import ZeroChannels, zero

__all__ = [
    "Channels",
    "Group",
    "Groups",
    "Member",
    "Shrink",
    "ZeroChannels",
    "find_groups",
    "replace_constants",
    "shrink",
    "zero",
]
