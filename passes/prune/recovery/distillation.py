"""What distillation is asked for and answers; without torch, which is an extra.

The training itself is in `tinsmith.passes.prune.autograd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import static_shape
from tinsmith.passes.prune.recovery.layers import find_layers


@dataclass(frozen=True)
class DistillationOptions:
    """How long and how a student learns.

    It ends after `minutes` or `epochs`, or, in the second half of them, when `patience`
    evaluations in a row were no better: while the learning rate is high, the loss may rise.
    `temperature` and `alpha` are those of `logits_loss`; `hint_weight` is how much the mean
    relative error of inner tensors counts beside it, 0: not at all.
    """

    minutes: float = 10.0
    epochs: int = 30
    learning_rate: float = 1e-4
    temperature: float = 2.0
    alpha: float = 0.0
    hint_weight: float = 5.0
    patience: int = 10


@dataclass(frozen=True)
class Batch:
    """Samples: `inputs` have them behind each other along their first axis.

    `labels` are class indices, int64 `[rows]`. `keys` tell samples apart that come again and
    look the same each time; None for samples that change.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Hint:
    """A tensor of the student and, of the teacher's along `axis`, the positions it has."""

    name: str
    axis: int
    positions: np.ndarray | None


@dataclass(frozen=True)
class DistillationResult:
    """Agreement and loss on held-out samples before and after, and what it took.

    `stopped_by` is "time", "epochs" or "no lower loss".
    """

    agreement_before: float
    agreement: float
    loss_before: float
    loss: float
    epochs: float
    steps: int
    seconds: float
    stopped_by: str


def find_hints(
    pruned: tvm.IRModule, positions: Mapping[tuple[str, int], np.ndarray]
) -> tuple[Hint, ...]:
    """The results of the layers that read or have fewer channels than in the whole graph.

    `positions` are those of `tinsmith.passes.prune.recovery.positions`.
    """
    ranks = {node.name: len(static_shape(node.variable) or ()) for node in Dataflow(pruned).nodes}
    shrunk = {name for name, _ in positions}
    hints: dict[str, Hint] = {}
    for layer in find_layers(pruned):
        if layer.data in shrunk or layer.name in shrunk:
            axis = layer.channel_axis % ranks[layer.target]
            hints[layer.target] = Hint(layer.target, axis, positions.get((layer.target, axis)))
    return tuple(hints.values())
