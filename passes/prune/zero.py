"""Channels set to zero, in place: what a smaller graph is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm

from tinsmith.passes.prune.analysis import find_groups
from tinsmith.passes.prune.constants import replace_constants
from tinsmith.passes.prune.groups import checked


@tvm.transform.module_pass(opt_level=0, name="ZeroChannels")
class ZeroChannels:
    """Set the units of dependency groups that are not kept to zero.

    Before, where `keep` leaves out unit 1 of the group of `w`::

        a: (1, 4, 8, 8) = conv2d(x, const w: (4, 3, 3, 3))
        b: (1, 4, 8, 8) = add(a, const bias: (1, 4, 1, 1))

    After: the same with `w[1]` and `bias[:, 1]` zero.

    Everything that produces such a channel is set to zero. The weights that consume it are
    too, but only if the channel is not zero by then, because a sigmoid (say) came between:
    the graph computes what `Shrink` computes, except for groups that are `inexact`.
    """

    def __init__(self, keep: Mapping[int, np.ndarray]) -> None:
        self.keep = dict(keep)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return zero(module, self.keep)


def zero(module: tvm.IRModule, keep: Mapping[int, np.ndarray]) -> tvm.IRModule:
    """`ZeroChannels(keep)` of a module; ValueError if a group cannot lose these units."""
    groups = find_groups(module)
    values: dict[int, np.ndarray] = {}
    for index, kept in checked(groups, keep).items():
        removed = np.setdiff1d(np.arange(groups[index].units), kept)
        for member in groups[index].members:
            if member.role == "produces" or (member.role == "consumes" and not member.reads_zero):
                array = values.setdefault(member.constant, groups.constants[member.constant].copy())
                np.moveaxis(array, member.axis, 0)[member.indices[removed].reshape(-1)] = 0
    return replace_constants(module, values)
