"""Classes of samples from files, archives and names; every mistake as one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.calibration import open_calibration, read_labels
from tinsmith.compiler.errors import ConfigError, InputError, TinsmithError

SIGNATURE = {"x": ((1, 3), "float32")}
SAMPLES = np.zeros((6, 3), np.float32)
CLASSES = np.array([4, 0, 1, 3, 2, 9])


@pytest.mark.parametrize("name", ["classes.npy", "classes.txt", "classes.csv"])
@pytest.mark.parametrize("limit", [None, 3])
def test_labels_of_a_file_follow_the_samples(tmp_path: Path, name: str, limit: int | None) -> None:
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, CLASSES.astype(np.uint16))
    else:
        path.write_text("\n".join(map(str, CLASSES)) + "\n\n")
    source = open_calibration(SAMPLES, SIGNATURE, limit=limit)
    found = read_labels(path, SAMPLES, source)
    assert found.dtype == np.int64
    assert found.tolist() == CLASSES[:: 1 if limit is None else 2].tolist()


def test_an_archive_may_hold_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=SAMPLES, labels=CLASSES)
    source = open_calibration(path, SIGNATURE)
    assert read_labels(None, path, source).tolist() == CLASSES.tolist()
    np.savez(path, x=SAMPLES)
    assert read_labels(None, path, source) is None


def test_pictures_are_named_by_their_class_or_lie_in_its_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("0007.png", "12/cat.png", "12/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    signature = {"x": ((2, 3, 8, 8), "float32")}
    source = open_calibration(tmp_path, signature)
    assert read_labels("from-names", tmp_path, source).tolist() == [7, 12, 12]
    image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "dog.png")
    with pytest.raises(InputError, match="named by a class index"):
        read_labels("from-names", tmp_path, open_calibration(tmp_path, signature))


def _wrong(tmp_path: Path):
    text = tmp_path / "bad.txt"
    text.write_text("1\ntwo\n")
    floats = tmp_path / "nan.npy"
    np.save(floats, np.full(6, np.nan))
    yield CLASSES[:5], InputError, "5 labels for 6 samples"
    yield CLASSES.astype(float), InputError, "one integer for each sample"
    yield -CLASSES, InputError, "not negative"
    yield floats, InputError, "one integer for each sample"
    yield text, InputError, "line 2: 'two' is no class index"
    yield tmp_path / "none.txt", InputError, "no such file"
    yield tmp_path / "labels.json", InputError, "not a .npy, .csv or .txt file"
    yield "from-names", ConfigError, "folders of pictures"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    source = open_calibration(SAMPLES, SIGNATURE)
    for labels, kind, message in _wrong(tmp_path):
        with pytest.raises(kind, match=message) as caught:
            read_labels(labels, SAMPLES, source)
        assert "\n" not in str(caught.value)
    with pytest.raises(TinsmithError, match="random data have no classes"):
        read_labels(CLASSES, "random", open_calibration("random", SIGNATURE))
