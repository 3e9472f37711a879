"""Distillation of a pruned graph from the whole one, over the samples of a source (needs torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import tvm

from tinsmith.compiler.calibration import (
    CalibrationSource,
    Preprocessing,
    RandomSource,
    open_calibration,
)
from tinsmith.compiler.calibration.folds import labels_for, without
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.pruning.augmentation import Augmentation
from tinsmith.compiler.pruning.batches import (
    BATCH,
    Samples,
    batch_of,
    parts,
    require_torch,
    torch_graph,
)
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.recovery.distillation import (
    Batch,
    DistillationOptions,
    DistillationResult,
    find_hints,
)

Positions = Mapping[tuple[str, int], np.ndarray]

_INSTEAD = "--recover least-squares"
# One sample in so many is held out, of at most so many.
_HELD_OUT_EVERY = 10
_MOST_HELD_OUT = 512
_LEAST_SAMPLES = 2 * _HELD_OUT_EVERY


class Distiller:
    """Trains pruned graphs to compute what `whole` does, on the machine at hand.

    All of the data are read, whatever the limit for statistics is, but what is held out.
    """

    def __init__(
        self,
        config: PruneConfig,
        whole: tvm.IRModule,
        source: CalibrationSource,
        workshop: Workshop,
        seed: int = 0,
        progress: Progress | None = None,
        held_out: CalibrationSource | None = None,
    ) -> None:
        """`held_out` are samples of the data that are not read, because they are to judge.

        Raises ConfigError without torch, and for augmentation of inputs that are no pictures.
        """
        require_torch("--recover distill")
        self._config = config
        self._whole = whole
        self._workshop = workshop
        self._seed = seed
        self._threads = workshop.threads or workshop.spec.cores
        self._progress = progress
        preprocessing = Preprocessing.of(config)
        self._source = source
        if not isinstance(source, RandomSource):
            self._source = open_calibration(
                config.calibration, source.signature, preprocessing=preprocessing
            )
            if held_out is not None:
                self._source = without(self._source, held_out)
        self._samples = Samples(self._source, self._labels())
        self._augment = Augmentation(config.augment, source, preprocessing)

    def distilled(
        self, pruned: tvm.IRModule, positions: Positions
    ) -> tuple[tvm.IRModule, DistillationResult]:
        """The pruned graph with the weights that it has learnt, and how that went.

        Raises ModelError for an operator that has no counterpart in PyTorch, and InputError
        for too few samples.
        """
        import torch

        from tinsmith.passes.prune.autograd.training import Distillation

        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            held_out = self._held_out()
            student = torch_graph(pruned, held_out[0], _INSTEAD)
            options = DistillationOptions(
                minutes=self._config.distill_minutes,
                epochs=self._config.distill_epochs,
                temperature=self._config.temperature,
                alpha=self._config.distill_alpha,
                hint_weight=self._config.hint_weight,
            )
            distillation = Distillation(
                torch_graph(self._whole, held_out[0], _INSTEAD),
                student,
                options,
                find_hints(pruned, positions),
                low_precision=self._workshop.spec.bfloat16,
            )
            result = distillation.run(self._epoch, held_out, self._told, self._length())
        finally:
            torch.set_num_threads(threads)
        return student.trained_module(), result

    def _labels(self) -> np.ndarray | None:
        if not self._config.distill_alpha:
            return None
        given = self._config.labels if self._config.evaluation is None else None
        labels = labels_for(given, self._config.calibration, self._source)
        if labels is None:
            raise ConfigError("--distill-alpha needs labels of the calibration data: pass --labels")
        return labels

    def _held_out(self) -> list[Batch]:
        chosen = [sample for sample in self._samples if self._is_held_out(sample[0])]
        count = self._samples.count
        if count < _LEAST_SAMPLES:
            raise InputError(
                f"{self._source.label}: distillation needs at least {_LEAST_SAMPLES} samples, "
                f"there are {count}"
            )
        return [batch_of(part) for part in parts(chosen)]

    def _is_held_out(self, index: int) -> bool:
        every = max(_HELD_OUT_EVERY, (self._source.count or 0) // _MOST_HELD_OUT)
        return index % every == every - 1

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """All samples that are not held out, shuffled, in full batches if there is one."""
        generator = np.random.default_rng((self._seed, epoch))
        training = (s for s in self._samples.shuffled(generator) if not self._is_held_out(s[0]))
        for number, part in enumerate(parts(training)):
            if len(part) < BATCH and number:
                return
            batch = batch_of([self._augment(sample, generator) for sample in part])
            yield self._augment.mixed(batch, generator)

    def _length(self) -> int:
        """How many batches an epoch has."""
        training = sum(not self._is_held_out(index) for index in range(self._samples.count))
        return max(training // BATCH, 1)

    def _told(self, standing: str, share: float) -> None:
        if self._progress is not None:
            self._progress(f"distill, {standing}", share)
