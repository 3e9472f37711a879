"""Samples from folders, files and Python; and every mistake as one clear line."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing, open_calibration
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.inputs import Domain

SIGNATURE = {"image": ((1, 3, 8, 6), "float32")}
NHWC = {"image": ((1, 8, 6, 3), "float32")}
TWO = {"ids": ((1, 4), "int64"), "mask": ((1, 4), "float32")}
MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def samples(source: CalibrationSource) -> list[np.ndarray]:
    return [next(iter(sample.values())) for sample in source]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures 6 wide and 8 high, in two subfolders, and a text."""
    image = pytest.importorskip("PIL.Image")
    for index, picture in enumerate(pixels(5, 8, 6, 3)):
        place = tmp_path / f"class{index % 2}"
        place.mkdir(exist_ok=True)
        image.fromarray(picture).save(place / f"{index}.png")
    (tmp_path / "README.txt").write_text("not a picture")
    return tmp_path


def test_pictures_are_normalised_and_transposed(folder: Path) -> None:
    source = open_calibration(folder, SIGNATURE, preprocessing=Preprocessing(MEAN, STD))
    assert source.count == 5
    expected = (pixels(5, 8, 6, 3).astype(np.float64) / 255 - MEAN) / STD
    for array, index in zip(samples(source), (0, 2, 4, 1, 3), strict=True):
        assert array.shape == (1, 3, 8, 6) and array.dtype == np.float32
        assert np.allclose(array[0].transpose(1, 2, 0), expected[index], atol=1e-5)


def test_pictures_for_a_model_of_the_other_layout(folder: Path) -> None:
    source = open_calibration(folder, NHWC, preprocessing=Preprocessing(pixel_range=255.0), limit=1)
    assert np.array_equal(samples(source)[0], pixels(5, 8, 6, 3)[:1].astype(np.float32))


def test_pictures_for_a_model_of_bytes_and_of_several_at_once(folder: Path) -> None:
    source = open_calibration(folder, {"x": ((2, 8, 6, 3), "uint8")})
    arrays = samples(source)
    assert len(arrays) == source.count == 3
    assert all(array.dtype == np.uint8 for array in arrays)
    # The last batch is filled up with its last picture.
    assert np.array_equal(arrays[2][0], arrays[2][1])


def test_pictures_are_resized_and_cut(folder: Path) -> None:
    small = {"image": ((1, 3, 5, 5), "float32")}
    for resize in (6, (6, 8), 5):
        source = open_calibration(folder, small, preprocessing=Preprocessing(resize=resize))
        assert all(array.shape == (1, 3, 5, 5) for array in samples(source))
    with pytest.raises(InputError, match=r"6x8 pixels, the model takes 5x5; pass --resize 5"):
        samples(open_calibration(folder, small))


def test_grey_pictures(folder: Path) -> None:
    source = open_calibration(folder, {"image": ((1, 1, 8, 6), "float32")})
    assert samples(source)[0].shape == (1, 1, 8, 6)


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "array", "dict", "list", "function"])
def test_bytes_of_arrays_are_pixels(tmp_path: Path, kind: str) -> None:
    """All forms of the same data give the same samples, more than once."""
    data = pixels(7, 8, 6, 3)
    path = tmp_path / ("data.npy" if kind == "npy" else "data.npz")
    given: Any = path
    if kind == "npz":
        np.savez(path, x=data, y=np.arange(7))
    elif kind == "compressed":
        np.savez_compressed(path, image=data, other=np.arange(3))
    elif kind == "npy":
        np.save(path, data)
    else:
        given = {
            "array": data,
            "dict": {"image": data},
            "list": [{"image": row} for row in data],
            "function": lambda: iter(data),
        }[kind]
    source = open_calibration(given, SIGNATURE, preprocessing=Preprocessing(MEAN, STD))
    expected = ((data.astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    for _ in range(2):
        arrays = samples(source)
        assert len(arrays) == 7
        assert np.allclose(np.concatenate(arrays), expected, atol=1e-5)
    assert source.count == (None if kind == "function" else 7)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    data = np.random.default_rng(1).standard_normal((3, 3, 8, 6))
    np.savez(tmp_path / "data.npz", image=data)
    arrays = samples(open_calibration(tmp_path / "data.npz", SIGNATURE))
    assert np.array_equal(np.concatenate(arrays), data.astype(np.float32))
    batches = data[:, None].astype(np.float32)  # rows that have their batch axis already
    assert np.array_equal(samples(open_calibration(batches, SIGNATURE))[2], batches[2])


def test_fortran_order_and_several_inputs(tmp_path: Path) -> None:
    ids = np.asfortranarray(np.arange(20).reshape(5, 4))
    np.savez(tmp_path / "data.npz", mask=np.ones((5, 4), np.float32), ids=ids)
    found = list(open_calibration(tmp_path / "data.npz", TWO))
    assert [list(sample) for sample in found] == [["ids", "mask"]] * 5
    assert np.array_equal(np.concatenate([sample["ids"] for sample in found]), ids)
    assert found[0]["ids"].dtype == np.int64


def test_a_limit_chooses_evenly() -> None:
    data = np.arange(10, dtype=np.float32)[:, None]
    source = open_calibration(data, {"x": ((1, 1), "float32")}, limit=4)
    assert [float(array[0, 0]) for array in samples(source)] == [0, 2, 5, 7]
    assert source.count == 4
    stream = open_calibration(lambda: iter(data), {"x": ((1, 1), "float32")}, limit=4)
    assert [float(array[0, 0]) for array in samples(stream)] == [0, 1, 2, 3]


def test_random_data_come_with_a_warning() -> None:
    source = open_calibration("random", TWO, bounds={"ids": Domain(high=29)}, limit=5)
    found = list(source)
    assert len(found) == source.count == 5
    assert found[0]["ids"].max() < 30
    assert "warning" in source.notes[0]
    again = list(source)
    assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0]["mask"], found[1]["mask"])


def test_bytes_are_told_to_be_pixels() -> None:
    assert "white as 1" in open_calibration(pixels(2, 8, 6, 3), SIGNATURE).notes[0]
    assert open_calibration(np.zeros((2, 3, 8, 6), np.float32), SIGNATURE).notes == ()


def test_an_archive_is_never_read_as_a_whole(tmp_path: Path) -> None:
    data = np.zeros((400, 3, 80, 60), np.float32)
    np.savez(tmp_path / "data.npz", image=data)
    whole = data.nbytes
    del data
    source = open_calibration(tmp_path / "data.npz", {"image": ((1, 3, 80, 60), "float32")})
    tracemalloc.start()
    try:
        count = sum(1 for _ in source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 400
    assert peak < whole / 20


def mistakes(path: Path) -> Iterator[tuple[type, str, Any, dict[str, Any], dict[str, Any]]]:
    """(error, message, data, signature, options)."""
    good = np.zeros((2, 3, 8, 6), np.float32)
    bad = good.copy()
    bad[1, 0, 0, 0] = np.nan
    np.save(path / "good.npy", good)
    np.savez(path / "named.npz", a=good, b=good)
    np.savez(path / "empty.npz", image=good[:0])
    np.savez(path / "none.npz")
    (path / "broken.npz").write_bytes(b"PK\x03\x04 this is no archive")
    (path / "broken.npy").write_bytes(b"no numpy")
    (path / "data.csv").write_text("1,2,3")
    np.save(path / "objects.npy", np.array([{}]), allow_pickle=True)
    (path / "folder").mkdir()
    config, wrong = ConfigError, InputError
    yield config, "pass --calibration with", None, SIGNATURE, {}
    yield wrong, "no such file or folder", path / "missing", SIGNATURE, {}
    yield wrong, "set of samples is empty: no pictures", path / "folder", SIGNATURE, {}
    yield wrong, "set of samples is empty", path / "empty.npz", SIGNATURE, {}
    yield wrong, "set of samples is empty", [], SIGNATURE, {}
    yield wrong, "set of samples is empty", good[:0], SIGNATURE, {}
    yield wrong, "no arrays", path / "none.npz", SIGNATURE, {}
    yield wrong, "no array for input image; the archive has a, b", path / "named.npz", SIGNATURE, {}
    yield wrong, "not a readable numpy file", path / "broken.npz", SIGNATURE, {}
    yield wrong, "not a readable numpy file", path / "broken.npy", SIGNATURE, {}
    yield wrong, "not a readable numpy file", path / "objects.npy", SIGNATURE, {}
    yield wrong, "neither a folder", path / "data.csv", SIGNATURE, {}
    yield wrong, "for the 2 inputs", path / "good.npy", TWO, {}
    yield wrong, "sample 1: input image holds NaN", bad, SIGNATURE, {}
    yield (
        wrong,
        "takes 1x3x8x6, the data have samples of 3x8x7",
        np.zeros((2, 3, 8, 7)),
        SIGNATURE,
        {},
    )
    yield wrong, "takes float32, the data are int64", good.astype(np.int64), SIGNATURE, {}
    yield wrong, "input mask is missing", {"ids": np.zeros((1, 4), int)}, TWO, {}
    yield wrong, "no input c", {"image": good, "c": good}, SIGNATURE, {}
    yield (
        wrong,
        "different numbers of samples",
        {"ids": np.zeros((3, 4), int), "mask": np.zeros((2, 4))},
        TWO,
        {},
    )
    yield wrong, "sample 0: input mask is missing", [{"ids": np.zeros(4, int)}], TWO, {}
    yield wrong, "pass a dict from input names", [np.zeros(4)], TWO, {}
    yield config, "a path, arrays or an iterable, not int", 3, SIGNATURE, {}
    yield config, "at least 1, not 0", good, SIGNATURE, {"limit": 0}
    yield (
        config,
        "--resize applies to a folder",
        good,
        SIGNATURE,
        {"preprocessing": Preprocessing(resize=4)},
    )
    yield (
        config,
        "mean has 2 numbers",
        good,
        SIGNATURE,
        {"preprocessing": Preprocessing((0.0, 1.0))},
    )
    yield (
        config,
        "mean and std do not apply",
        np.zeros((1, 4)),
        {"x": ((1, 4), "int64")},
        {"preprocessing": Preprocessing(0.5)},
    )


@pytest.mark.parametrize("number", range(26))
def test_mistakes_are_one_clear_line(tmp_path: Path, number: int) -> None:
    error, message, data, signature, options = list(mistakes(tmp_path))[number]
    with pytest.raises(error) as caught:
        list(open_calibration(data, signature, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_tried(tmp_path: Path) -> None:
    assert len(list(mistakes(tmp_path))) == 26


def test_a_damaged_picture_is_named(folder: Path) -> None:
    (folder / "class0" / "a.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(InputError, match=r"a\.jpg: not a readable picture"):
        samples(open_calibration(folder, SIGNATURE))


def test_pictures_need_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match="install"):
        open_calibration(folder, SIGNATURE)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (TWO, "takes 2 inputs"),
        ({"x": ((1, 4), "float32")}, "does not take pictures"),
        ({"x": ((1, 8, 8, 8), "float32")}, "pass --layout"),
    ],
)
def test_models_that_take_no_pictures(folder: Path, signature: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_calibration(folder, signature)


def test_an_iterator_can_be_used_once() -> None:
    source = open_calibration(iter([np.zeros((3, 8, 6), np.float32)]), SIGNATURE)
    assert len(samples(source)) == 1
    with pytest.raises(ConfigError, match="only once"):
        samples(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "std must be positive"),
        ({"mean": "x"}, "mean must be numbers"),
        ({"mean": np.nan}, "mean must be finite"),
        ({"mean": 125.3}, "choose a pixel range of 255"),
        ({"pixel_range": 7.0}, "1 or 255"),
        ({"layout": "CHWN"}, "choose from NCHW, NHWC"),
        ({"resize": 0}, "resize must be"),
        ({"resize": (3, "a")}, "resize must be"),
    ],
)
def test_preprocessing_checks_itself(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**options)
