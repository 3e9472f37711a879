"""Distillation: a pruned graph learns to compute what the whole one does, without labels.

Samples are read batch by batch; the rate follows a cosine over the time or the epochs allowed,
whichever end sooner. What is kept are the weights with the least loss on held-out
samples, so the graph is never worse there than before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.autograd.graph import TorchGraph, scores_name
from tinsmith.passes.prune.autograd.losses import agreement, logits_loss, relative_error
from tinsmith.passes.prune.recovery.distillation import (
    Batch,
    DistillationOptions,
    DistillationResult,
    Hint,
)

# The share of the way over which the rate rises to its full value.
_WARM_UP = 0.05
_CLIPPED_NORM = 1.0
_WEIGHT_DECAY = 1e-4
# No lower loss ends the training once the rate has come down to a half.
_SETTLING = 0.5
# Evaluations take time: at most so many, unless epochs are longer.
_EVALUATIONS = 25


@dataclass(frozen=True)
class _Standing:
    """How a student does on held-out samples; less loss wins, which is finer than agreement."""

    agreement: float
    loss: float

    def beats(self, other: _Standing) -> bool:
        return self.loss < other.loss


class Distillation:
    """Trains the parameters of `student`; `teacher` has the same inputs and results.

    `hints` are tensors of the student to compare with those of the teacher that have the same
    name: where, of the teacher's channels, the student's are.
    """

    def __init__(
        self,
        teacher: TorchGraph,
        student: TorchGraph,
        options: DistillationOptions,
        hints: Sequence[Hint] = (),
        low_precision: bool = False,
    ) -> None:
        """`low_precision`: products in bfloat16, for a machine that is faster in it."""
        self._teacher = teacher.requires_grad_(False)
        self._student = student
        self._options = options
        self._hints = tuple(hints) if options.hint_weight else ()
        self._low_precision = low_precision
        self._scores = scores_name(student.module)
        self._taught: dict[int, Tensor] = {}

    def run(
        self,
        epochs: Callable[[int], Iterable[Batch]],
        held_out: Sequence[Batch],
        progress: Progress | None = None,
        length: int = 0,
    ) -> DistillationResult:
        """Train on `epochs(0)`, `epochs(1)`, ... until time, epochs or patience are over.

        `held_out` are batches that are not trained on. `length` is how many batches an epoch
        has, as far as that is known before its end (else 0). `progress` is told the share of the
        time or of the epochs that is over, and the standing in words.
        """
        options = self._options
        optimizer = torch.optim.AdamW(
            self._student.parameters(), options.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        begin = time.monotonic()
        first = best = self._standing(held_out)
        weights = self._weights()
        clock = _Clock(begin, options, length)
        waited, losses, reason = 0, [], "epochs"
        told = f"agreement {first.agreement:.2%}"
        for epoch in range(options.epochs):
            for batch, share in clock.within(epoch, epochs(epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * _rate(share)
                losses.append(self._train(optimizer, batch))
                if progress is not None:
                    progress(told, share)
            if not clock.due(epoch):
                continue
            standing = self._standing(held_out)
            waited += 1
            if standing.beats(best):
                best, waited, weights = standing, 0, self._weights()
            told = f"epoch {epoch + 1}, agreement {standing.agreement:.2%}"
            if clock.over:
                reason = "time"
                break
            if waited >= options.patience and clock.judged >= _SETTLING:
                reason = "no lower loss"
                break
        self._student.load_state_dict(weights, strict=False)
        return DistillationResult(
            agreement_before=first.agreement,
            agreement=best.agreement,
            loss_before=first.loss,
            loss=best.loss,
            epochs=clock.epochs,
            steps=len(losses),
            seconds=time.monotonic() - begin,
            stopped_by=reason,
        )

    def _train(self, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        loss = self._loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), _CLIPPED_NORM)
        optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        inputs = [torch.from_numpy(array) for array in batch.inputs]
        wanted = [hint.name for hint in self._hints]
        taught = self._taught_by(batch, inputs, wanted)
        found = self._run(self._student, inputs, [*wanted, self._scores])
        loss = self._result_loss(found, taught, batch.labels)
        for hint in self._hints:
            target = taught[hint.name]
            if hint.positions is not None:
                target = target.index_select(hint.axis, torch.from_numpy(hint.positions))
            weight = self._options.hint_weight / len(self._hints)
            loss = loss + weight * relative_error(found[hint.name].float(), target.float())
        return loss

    def _result_loss(
        self, found: Mapping[str, Tensor], taught: Mapping[str, Tensor], labels: np.ndarray | None
    ) -> Tensor:
        """Of rows of scores a divergence, of other results the relative error."""
        scores, target = found[self._scores].float(), taught[self._scores].float()
        options = self._options
        if _are_scores(target):
            hard = None if labels is None else torch.from_numpy(labels)
            loss = logits_loss(scores, target, options.temperature, options.alpha, hard)
            others = self._student.result_names[1:]
        else:
            loss = scores.new_zeros(())
            others = self._student.result_names
        for name in others:
            if found[name].is_floating_point():
                loss = loss + relative_error(found[name].float(), taught[name].float())
        return loss

    def _taught_by(
        self, batch: Batch, inputs: Sequence[Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The teacher's tensors; scores of samples that have been seen before are remembered."""
        plain = not wanted and len(self._student.result_names) == 1 and batch.keys is not None
        if plain and all(key in self._taught for key in batch.keys or ()):
            rows = torch.stack([self._taught[key] for key in batch.keys or ()])
            return {self._scores: rows.flatten(0, 1)}
        with torch.no_grad():
            taught = self._run(self._teacher, inputs, [*wanted, self._scores])
        scores = taught[self._scores]
        if plain and _are_scores(scores):
            keys = batch.keys or ()
            rows = scores.reshape(len(keys), -1, scores.shape[-1])
            self._taught.update(zip(keys, rows, strict=True))
        return taught

    def _run(
        self, graph: TorchGraph, inputs: Sequence[Tensor], watch: Sequence[str]
    ) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._low_precision):
            return graph(*inputs, watch=watch)

    def _standing(self, held_out: Sequence[Batch]) -> _Standing:
        agreements, losses, counts = [], [], []
        with torch.no_grad():
            for batch in held_out:
                inputs = [torch.from_numpy(array) for array in batch.inputs]
                taught = self._taught_by(batch, inputs, ())
                found = self._run(self._student, inputs, [self._scores])
                target = taught[self._scores]
                same = _are_scores(target)
                agreements.append(agreement(found[self._scores], target) if same else math.nan)
                losses.append(float(self._result_loss(found, taught, None)))
                counts.append(len(batch.inputs[0]))
        mean = float(np.average(agreements, weights=counts))
        # Without classes nothing agrees or not, and the loss decides.
        loss = float(np.average(losses, weights=counts))
        return _Standing(mean if math.isfinite(mean) else 0.0, loss)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._student.named_parameters()}


class _Clock:
    """How much of the time or of the epochs is over, and was at the last evaluation (`judged`)."""

    def __init__(self, begin: float, options: DistillationOptions, length: int) -> None:
        self._begin = begin
        self._limit = options.minutes * 60
        self._options = options
        self._steps = length
        self.judged = 0.0
        self.epochs = 0.0

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return self._elapsed >= 1

    def due(self, epoch: int) -> bool:
        """Whether it is time to evaluate."""
        share = max(self._elapsed, (epoch + 1) / self._options.epochs)
        if share < 1 and share - self.judged < 1 / _EVALUATIONS:
            return False
        self.judged = share
        return True

    def within(self, epoch: int, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
        """The batches of an epoch until the time is over, with the share that is over."""
        length = self._steps
        for index, batch in enumerate(batches):
            inside = index / length if length else 0.0
            share = max(self._elapsed, (epoch + min(inside, 1.0)) / self._options.epochs)
            if self.over:
                return
            yield batch, share
            self.epochs = epoch + (index + 1) / max(length, index + 1)
            self._steps = max(self._steps, index + 1)

    @property
    def _elapsed(self) -> float:
        return (time.monotonic() - self._begin) / self._limit


def _rate(share: float) -> float:
    """A linear rise, then half a cosine."""
    if share < _WARM_UP:
        return max(share / _WARM_UP, 0.05)
    return 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))


def _are_scores(tensor: Tensor) -> bool:
    """Whether these are rows of scores for classes."""
    return tensor.ndim == 2 and tensor.shape[1] > 1 and tensor.is_floating_point()
