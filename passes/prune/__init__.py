"""Structured pruning: what belongs together, what matters, how much of it goes, what remains."""

from passes.prune.analysis import find_groups
from passes.prune.groups import Channels, Group, Groups, Member

__all__ = ["Channels", "Group", "Groups", "Member", "find_groups"]
