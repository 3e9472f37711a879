"""Few photographs in several views."""

from __future__ import annotations

import numpy as np

from tinsmith.compiler.calibration import Preprocessing, open_calibration
from tinsmith.compiler.pruning.views import VIEWS, viewed

PICTURES = {"x": ((1, 3, 28, 28), "float32")}


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, 3, 28, 28)).astype(np.float32)


def test_views_follow_each_other() -> None:
    data = pictures(3)
    source, views = viewed(open_calibration(data, PICTURES), Preprocessing())
    found = [sample["x"] for sample in source]
    assert views == VIEWS and source.count == len(found) == 3 * VIEWS
    for index, picture in enumerate(data):
        same, mirrored, *others = found[index * VIEWS : (index + 1) * VIEWS]
        shifted, enlarged = others[:4], others[4:]
        np.testing.assert_array_equal(same[0], picture)
        np.testing.assert_array_equal(mirrored[0], picture[..., ::-1])
        for view in shifted:
            # Nothing is lost or made up.
            np.testing.assert_array_equal(np.sort(view, axis=None), np.sort(picture, axis=None))
            assert not np.array_equal(view[0], picture)
        for view in enlarged:
            assert picture.min() <= view.min() and view.max() <= picture.max()
    assert len({view.tobytes() for view in found}) == len(found)


def test_what_is_in_the_middle_comes_nearer() -> None:
    ramp = np.broadcast_to(np.arange(28, dtype=np.float32), (1, 3, 28, 28))
    source, _ = viewed(open_calibration(np.ascontiguousarray(ramp), PICTURES), Preprocessing())
    views = [sample["x"] for sample in source]
    nearer, mirrored = 13.5 + (ramp - 13.5) / 1.2, 13.5 - (ramp - 13.5) / 1.4
    np.testing.assert_allclose(views[-2], nearer, rtol=1e-6)
    np.testing.assert_allclose(views[-1], mirrored, rtol=1e-6)


def test_the_layout_is_that_of_the_input() -> None:
    data = pictures(1).transpose(0, 2, 3, 1)
    signature = {"x": ((1, 28, 28, 3), "float32")}
    source, _ = viewed(open_calibration(data, signature), Preprocessing())
    _, mirrored, *_ = (sample["x"] for sample in source)
    np.testing.assert_array_equal(mirrored[0], data[0, :, ::-1])


def test_what_is_no_picture_or_plenty_stays_as_it_is() -> None:
    rows = open_calibration(np.ones((9, 16), np.float32), {"x": ((1, 16), "float32")})
    assert viewed(rows, Preprocessing()) == (rows, 1)
    tokens = open_calibration(np.ones((9, 16), np.int64), {"x": ((1, 16), "int64")})
    assert viewed(tokens, Preprocessing()) == (tokens, 1)
    many = open_calibration(pictures(256), PICTURES)
    assert viewed(many, Preprocessing()) == (many, 1)
