"""Single weights set to zero, as an option asks for it."""

from __future__ import annotations

from collections.abc import Callable

import tvm

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.pruning.config import parse_sparsity
from tinsmith.compiler.pruning.report import SparseLayer
from tinsmith.passes.prune.sparsify import (
    Mask,
    SparsifyWeights,
    below,
    largest_of,
    smallest,
    zeros_by_layer,
)

NO_FASTER = (
    "weights that are zero make the module no faster: dense kernels multiply them like all "
    "others; `tinsmith pack` stores it smaller. Winograd's algorithm, whose transformed weights "
    "have no zeros, stays off, so that 3x3 convolutions may be slower than in a dense module"
)
TIMED_BEFORE = (
    "latencies that pruning tells were measured before single weights were set to zero; those of "
    "the module are in the line of its compilation"
)
_MASKS: dict[str, Callable[..., Mask]] = {
    "ratio": smallest,
    "pattern": largest_of,
    "below": below,
}


def sparsified(
    module: tvm.IRModule, sparsity: float | str
) -> tuple[tvm.IRModule, tuple[SparseLayer, ...]]:
    """The graph with weights of small magnitude zero (`PruneConfig.sparsity`), and its layers.

    Raises ModelError if no weight becomes zero.
    """
    kind, numbers = parse_sparsity(sparsity)
    step: tvm.transform.Pass = SparsifyWeights(_MASKS[kind](*numbers))
    sparse = step(module)
    layers = tuple(
        SparseLayer(name, weights, zeros)
        for name, (weights, zeros) in zeros_by_layer(sparse).items()
    )
    if not any(layer.zeros for layer in layers):
        raise ModelError(
            f"--sparsity {sparsity}: no weight becomes zero; convolutions and matrix products of "
            "few weights are left alone"
        )
    return sparse, layers
