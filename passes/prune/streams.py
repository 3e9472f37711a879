"""Residual streams and linear bottlenecks, and how narrow they are beside the rest."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.prune.groups import Group, Groups

# What leaves a tensor linear in the layers that produce it.
_LINEAR = {"relax.nn.conv2d", "relax.matmul", "relax.add", "relax.nn.batch_norm", None}


def stream_weights(module: tvm.IRModule, groups: Groups) -> dict[int, float]:
    """For each group that is a residual stream, how much it should shrink relative to others.

    A stream that blocks widen and narrow again (the bottlenecks of MobileNetV2 are six times
    narrower than what is computed between them) has little to lose, and all blocks read what
    it loses: its weight is the square of its width over the mean width of these inner layers,
    and at most 1. So is that of a linear bottleneck without a sum, beside what reads it.
    `groups` are those of `module`. Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals
    and Linear Bottlenecks", section 3.3 (arXiv:1801.04381).
    """
    graph = {node.name: node for node in Dataflow(module).nodes}
    produced: dict[int, int] = {}
    consumed: dict[int, list[int]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            if member.role == "produces":
                produced.setdefault(member.constant, group.index)
            elif member.role == "consumes":
                consumed[group.index].append(member.constant)
    found = {}
    for group in groups:
        nodes = [graph[c.tensor] for c in group.tensors if c.tensor in graph]
        inner = {produced[c] for c in consumed[group.index] if c in produced} - {group.index}
        if any(node.operator == "relax.add" and len(node.operands) == 2 for node in nodes):
            inner = {
                index
                for index in inner
                if any(produced.get(constant) == group.index for constant in consumed[index])
            }
        elif not all(node.operator in _LINEAR for node in nodes):
            continue
        if inner:
            mean = float(np.mean([_channels(groups[index]) for index in inner]))
            found[group.index] = min(1.0, (_channels(group) / mean) ** 2)
    return found


def _channels(group: Group) -> int:
    blocks = [member.indices.shape[1] for member in group.role("produces")] or [1]
    return group.units * max(blocks)
