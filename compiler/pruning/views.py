"""Pictures as they could have been as well: few photographs teach more in several views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing
from tinsmith.compiler.errors import ConfigError

# (mirrored, rows and columns shifted down and right, enlarged): as they are, mirrored, both shifted
# along both diagonals, and what is in the middle from nearer by.
_VIEWS = (
    (False, (0, 0), 1.0),
    (True, (0, 0), 1.0),
    (False, (1, 1), 1.0),
    (True, (-1, -1), 1.0),
    (True, (1, -1), 1.0),
    (False, (-1, 1), 1.0),
    (False, (0, 0), 1.2),
    (True, (0, 0), 1.4),
)
VIEWS = len(_VIEWS)
# More samples than this teach enough as they are.
FEW_SAMPLES = 256
# Half a pixel of the coarsest tensors of usual networks, which halve their size five times.
_SHIFT = 1 / 14


class ViewedSource(CalibrationSource):
    """The samples of a source, `VIEWS` views of each behind the other.

    What is shifted out comes in on the other side, so that every value is that of a picture or
    between two of them.
    The whole model tells what it makes of a view, so no label is needed.
    """

    def __init__(self, source: CalibrationSource, width: Mapping[str, int]) -> None:
        """`width` is the axis of the width of each input; that of the height is before it."""
        super().__init__(source.label, source.signature)
        self.notes = source.notes
        self._source = source
        self._width = dict(width)

    @property
    def count(self) -> int | None:
        return None if self._source.count is None else VIEWS * self._source.count

    def _samples(self) -> Iterator[Mapping[str, np.ndarray]]:
        for sample in self._source:
            for view in _VIEWS:
                yield {name: self._view(sample[name], name, *view) for name in sample}

    def _view(
        self, array: np.ndarray, name: str, mirrored: bool, ways: tuple[int, int], zoom: float
    ) -> np.ndarray:
        width = self._width[name]
        axes = width - 1, width
        if mirrored:
            array = np.flip(array, width)
        if any(ways):
            by = [
                way * round(array.shape[axis] * _SHIFT)
                for way, axis in zip(ways, axes, strict=True)
            ]
            array = np.roll(array, by, axes)
        if zoom > 1:
            for axis in axes:
                array = _enlarged(array, axis, zoom)
        return np.ascontiguousarray(array)


def _enlarged(array: np.ndarray, axis: int, zoom: float) -> np.ndarray:
    """The middle of an axis, interpolated linearly to the whole of it."""
    size = array.shape[axis]
    middle = (size - 1) / 2
    places = middle + (np.arange(size) - middle) / zoom
    before = places.astype(np.int64)
    after = np.minimum(before + 1, size - 1)
    share = (places - before).astype(array.dtype)
    share = share.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return np.take(array, before, axis) * (1 - share) + np.take(array, after, axis) * share


def viewed(
    source: CalibrationSource, preprocessing: Preprocessing
) -> tuple[CalibrationSource, int]:
    """`source` in several views if it has few samples, all of pictures, and how many views."""
    if source.count is None or source.count >= FEW_SAMPLES:
        return source, 1
    width = {}
    for name, (shape, dtype) in source.signature.items():
        try:
            width[name] = 3 if preprocessing.layout_of(name, shape) == "NCHW" else 2
        except ConfigError:
            return source, 1
        if np.dtype(dtype).kind != "f" or min(shape[width[name] - 1], shape[width[name]]) < 8:
            return source, 1
    return ViewedSource(source, width), VIEWS
