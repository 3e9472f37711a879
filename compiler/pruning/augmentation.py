"""Samples changed at random, so that a student sees more than there are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing
from tinsmith.compiler.pruning.batches import Sample
from tinsmith.passes.prune.recovery.distillation import Batch

# A picture is shifted by at most this share of its height and width.
_SHIFT = 1 / 8
# Of another picture that is mixed in.
_MOST_SHARE = 0.5


class Augmentation:
    """Pictures as they could have been as well: "flip", "crop" and "mixup".

    A flip exchanges left and right. A crop shifts by up to an eighth of height and width; what
    that leaves open is 0, the mean where pixels are normalised. Mixup adds a share of another
    picture of the batch to each: the teacher tells what it makes of that, so no label is
    needed, and it is less sure than of pictures that it was trained on. Sources: Zhang
    et al. 2018, "mixup", section 2 (arXiv:1710.09412), with uniform shares up to a half;
    for teachers Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and
    consistent", section 3.1 (arXiv:2106.05237).
    """

    def __init__(
        self, names: Iterable[str], source: CalibrationSource, preprocessing: Preprocessing
    ) -> None:
        self._names = tuple(names)
        self._width: dict[int, int] = {}
        if self._names:
            for position, (name, (shape, _)) in enumerate(source.signature.items()):
                self._width[position] = 3 if preprocessing.layout_of(name, shape) == "NCHW" else 2

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """The sample, changed at random."""
        if not self._names:
            return sample
        index, arrays, labels, key = sample
        changed = list(arrays)
        flip = "flip" in self._names and generator.random() < 0.5
        shift = generator.uniform(-_SHIFT, _SHIFT, 2) if "crop" in self._names else None
        for position, width in self._width.items():
            if flip:
                changed[position] = np.flip(changed[position], width)
            if shift is not None:
                changed[position] = _shifted(changed[position], shift, width)
        key = None if shift is not None else 2 * index + flip
        return index, tuple(changed), labels, key

    def mixed(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """The batch, every sample with a share of another."""
        if "mixup" not in self._names:
            return batch
        rows = len(batch.inputs[0])
        order, shares = generator.permutation(rows), generator.uniform(0, _MOST_SHARE, rows)
        inputs = []
        for array in batch.inputs:
            share = shares.astype(array.dtype).reshape(-1, *(1,) * (array.ndim - 1))
            inputs.append((1 - share) * array + share * array[order])
        return Batch(tuple(inputs))


def _shifted(array: np.ndarray, shift: np.ndarray, width: int) -> np.ndarray:
    result = np.zeros_like(array)
    into, out_of = [slice(None)] * 4, [slice(None)] * 4
    for axis, share in zip((width - 1, width), shift, strict=True):
        by = round(float(share) * array.shape[axis])
        into[axis] = slice(max(by, 0), array.shape[axis] + min(by, 0))
        out_of[axis] = slice(max(-by, 0), array.shape[axis] + min(-by, 0))
    result[tuple(into)] = array[tuple(out_of)]
    return result
