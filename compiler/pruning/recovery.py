"""What a pruned graph learns from samples: in closed form, and by distillation after that."""

from __future__ import annotations

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.distillation import Distiller
from tinsmith.compiler.pruning.observed import ObservedGraph
from tinsmith.compiler.pruning.reconstruction import LayerError, Reconstruction
from tinsmith.compiler.pruning.views import FEW_SAMPLES, viewed
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.recovery.batch_norm import ChannelStatistics, find_batch_norms
from tinsmith.passes.prune.recovery.distillation import DistillationResult
from tinsmith.passes.prune.recovery.positions import Positions
from tinsmith.passes.prune.recovery.replace_operands import replace_operands

# The statistics of a layer depend on those of the layers before it: a few sweeps settle them.
_SWEEPS = 2


class Recovery:
    """Runs the recovery that the options choose."""

    def __init__(
        self,
        config: PruneConfig,
        whole: tvm.IRModule,
        source: CalibrationSource | None,
        workshop: Workshop,
        seed: int = 0,
        progress: Progress | None = None,
        held_out: CalibrationSource | None = None,
    ) -> None:
        """Nothing is learned from the samples of `held_out`, which may be part of the data."""
        self._source = source
        self._workshop = workshop
        self._progress = progress
        self._method = config.chosen_recovery
        self._reconstruction: Reconstruction | None = None
        self._distiller: Distiller | None = None
        self._alone = False
        self.distillation: DistillationResult | None = None
        if source is not None and self._method == "distill":
            self._distiller = Distiller(config, whole, source, workshop, seed, progress, held_out)
        if source is not None and self._method in ("least-squares", "distill"):
            seen, views = viewed(source, Preprocessing.of(config))
            self._alone = source.count is not None and source.count < FEW_SAMPLES
            self._reconstruction = Reconstruction(
                whole,
                seen,
                workshop,
                views=views,
                alone=self._alone,
                ridge=config.ridge,
                places=config.places,
                seed=seed,
                progress=progress,
            )

    def recovered(
        self, pruned: tvm.IRModule, positions: Positions, last: bool = True
    ) -> tuple[tvm.IRModule, tuple[LayerError, ...]]:
        """The graph with new constants, and the errors of the layers that were solved for.

        Distillation takes its time once: after the `last` step.
        """
        if self._source is None or self._method == "none":
            return pruned, ()
        # Layers that each give what they gave before need the statistics of before, too.
        if not self._alone:
            pruned = estimate_batch_norms(pruned, self._source, self._workshop, self._progress)
        if self._reconstruction is None:
            return pruned, ()
        pruned, errors = self._reconstruction.recovered(pruned, positions)
        if self._distiller is not None and last:
            pruned, self.distillation = self._distiller.distilled(pruned, positions)
        return pruned, errors


def estimate_batch_norms(
    module: tvm.IRModule,
    source: CalibrationSource,
    workshop: Workshop,
    progress: Progress | None = None,
) -> tvm.IRModule:
    """The graph with the statistics of its batch normalisations measured on the samples."""
    norms = find_batch_norms(module)
    if not norms:
        return module
    for sweep in range(_SWEEPS):
        statistics = {norm.name: ChannelStatistics(norm.axis) for norm in norms}
        with ObservedGraph(module, workshop, [norm.data for norm in norms]) as observed:
            for index, sample in enumerate(source):
                if progress is not None:
                    share = index / (source.count or index + 1)
                    progress("batch normalisation", (sweep + share) / _SWEEPS)
                tensors = observed.run(sample)
                for norm in norms:
                    statistics[norm.name].update(tensors[norm.data])
        values: dict[tuple[str, int], np.ndarray] = {}
        for norm in norms:
            values |= statistics[norm.name].operands(norm)
        module = replace_operands(module, values)
    return module
