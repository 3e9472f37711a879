"""Top-1 accuracy of a module on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.regular_file import open_regular
from tinsmith.passes.progress import Progress


@dataclass(frozen=True)
class LabelledImages:
    """`images` (N, H, W) or (N, H, W, C) uint8, `labels` (N,) class indices, `classes` names."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> LabelledImages:
        """Read an .npz with `images`, `labels` and, perhaps, `classes`.

        Raises InputError if the file is not such an archive.
        """
        try:
            with (
                open(open_regular(path), "rb") as stream,
                np.load(stream, allow_pickle=False) as archive,
            ):
                images, labels = archive["images"], archive["labels"]
                classes = tuple(map(str, archive["classes"])) if "classes" in archive else ()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        except Exception as error:  # numpy raises BadZipFile, KeyError, ValueError, EOFError ...
            raise InputError(
                f"{path}: not an .npz archive with `images` and `labels` ({error})"
            ) from error
        if images.ndim not in (3, 4) or len(images) != len(labels) or len(labels) == 0:
            raise InputError(
                f"{path}: images {images.shape} and labels {labels.shape} do not fit each other"
            )
        return cls(images, labels, classes)


@dataclass(frozen=True)
class Accuracy:
    """How many of `total` images were classified correctly."""

    correct: int
    total: int

    @property
    def top1(self) -> float:
        return self.correct / self.total


def top1(
    scores_of: Callable[[np.ndarray], np.ndarray],
    data: LabelledImages,
    progress: Progress | None = None,
) -> Accuracy:
    """Accuracy of `scores_of`: one image (1, C, H, W) float32 in 0..1 -> scores (1, classes)."""
    correct = 0
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        batch = np.ascontiguousarray(planes[None], np.float32) / np.float32(255)
        correct += int(scores_of(batch).reshape(-1).argmax()) == int(label)
        if progress is not None:
            count = len(data.labels)
            progress(f"{count} labelled images", (index + 1) / count)
    return Accuracy(correct, len(data.labels))
