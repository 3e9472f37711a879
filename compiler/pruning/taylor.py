"""Taylor importance: gradients of the loss on calibration data (needs torch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.pruning.batches import Samples, batch_of, parts, require_torch, torch_graph
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.groups import Group, Groups
from tinsmith.passes.prune.importance.taylor import taylor_of_weights
from tinsmith.passes.prune.importance.weights import unit_rows


def taylor_scores(
    module: tvm.IRModule,
    groups: Groups,
    chosen: Sequence[Group],
    source: CalibrationSource,
    progress: Progress | None = None,
) -> dict[int, np.ndarray]:
    """Scores by group index, each `[units]`: the mean over batches of `taylor_of_weights`.

    The loss is the cross entropy of the model's own classes, so that no labels are needed.
    Raises ConfigError without torch, and ModelError for a model that answers no row of
    scores or has an operator without a counterpart in PyTorch.
    """
    require_torch("--prune-criterion taylor")
    import torch

    from tinsmith.passes.prune.autograd.graph import scores_name

    batches = [batch_of(part) for part in parts(Samples(source, None))]
    graph = torch_graph(module, batches[0], "another --prune-criterion")
    scores_of = scores_name(module)
    totals = {group.index: np.zeros(group.units) for group in chosen}
    for number, batch in enumerate(batches):
        if progress is not None:
            progress("gradients", number / len(batches))
        graph.zero_grad(set_to_none=True)
        scores = graph(*(torch.from_numpy(array) for array in batch.inputs), watch=[scores_of])[
            scores_of
        ]
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ModelError(
                "--prune-criterion taylor needs a model that answers rows of scores: choose another"
            )
        torch.nn.functional.cross_entropy(scores, scores.detach().argmax(1)).backward()
        gradients = graph.gradients()
        for group in chosen:
            members = [m for m in group.role("produces") if m.constant in gradients]
            totals[group.index] += taylor_of_weights(
                [unit_rows(groups.constants[m.constant], m) for m in members],
                [unit_rows(gradients[m.constant], m) for m in members],
            )
    return {index: total / len(batches) for index, total in totals.items()}
