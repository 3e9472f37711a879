"""Top-1 accuracy and the reading of labelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.evaluate.accuracy import LabelledImages, top1


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_counts_hits_and_scales_pixels(tmp_path: Path) -> None:
    images = np.zeros((4, 2, 3), np.uint8)
    images[:, 0, 0] = (0, 51, 102, 255)
    path = write(tmp_path / "d.npz", images=images, labels=np.array([0, 1, 2, 3]))
    seen: list[tuple[tuple[int, ...], str, float]] = []
    steps: list[tuple[str, float]] = []

    def scores(batch: np.ndarray) -> np.ndarray:
        seen.append((batch.shape, batch.dtype.name, float(batch[0, 0, 0, 0])))
        return np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)

    result = top1(
        scores, LabelledImages.read(path), lambda phase, share: steps.append((phase, share))
    )
    assert (result.correct, result.total, result.top1) == (1, 4, 0.25)
    assert [s[:2] for s in seen] == [((1, 1, 2, 3), "float32")] * 4
    assert [s[2] for s in seen] == pytest.approx([0, 0.2, 0.4, 1.0])
    assert steps[-1] == ("4 labelled images", 1.0)


def test_colour_images_become_planes() -> None:
    images = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)

    def scores(batch: np.ndarray) -> np.ndarray:
        assert batch.shape == (1, 3, 2, 2)
        np.testing.assert_allclose(batch[0, 1] * 255, [[1, 4], [7, 10]], rtol=1e-6)
        return np.array([[1.0, 0.0]])

    assert top1(scores, LabelledImages(images, np.array([0]), ())).correct == 1


def test_refuses_what_is_not_such_an_archive(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    bad = [
        tmp_path / "absent.npz",
        text,
        write(tmp_path / "a.npz", images=np.zeros((2, 3, 3))),
        write(tmp_path / "b.npz", images=np.zeros((2, 3, 3)), labels=np.zeros(3)),
        write(tmp_path / "c.npz", images=np.zeros(2), labels=np.zeros(2)),
        write(tmp_path / "d.npz", images=np.zeros((0, 2, 2)), labels=np.zeros(0)),
    ]
    for path in bad:
        with pytest.raises(InputError, match=path.name):
            LabelledImages.read(path)
