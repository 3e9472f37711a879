"""Structured pruning: what belongs together, what matters, how much of it goes, what remains."""

from passes.prune.analysis import find_groups
from passes.prune.constants import replace_constants
from passes.prune.groups import Channels, Group, Groups, Member
from passes.prune.shrink import Shrink, shrink
from passes.prune.zero import ZeroChannels, zero

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
