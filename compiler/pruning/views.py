"""Pictures as they could have been as well: few photographs teach more in several views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tinsmith.compiler.calibration import CalibrationSource, Preprocessing
from tinsmith.compiler.errors import ConfigError

# As they are, mirrored, and both shifted.
VIEWS = 4
# More samples than this teach enough as they are.
FEW_SAMPLES = 256
# Half a pixel of the coarsest tensors of usual networks, which halve their size five times.
_SHIFT = 1 / 14


class ViewedSource(CalibrationSource):
    """The samples of a source, `VIEWS` views of each behind the other.

    What is shifted out comes in on the other side, so that every value is that of a picture.
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
            for mirrored, way in ((False, 0), (True, 0), (False, 1), (True, -1)):
                yield {name: self._view(sample[name], name, mirrored, way) for name in sample}

    def _view(self, array: np.ndarray, name: str, mirrored: bool, way: int) -> np.ndarray:
        width = self._width[name]
        if mirrored:
            array = np.flip(array, width)
        if way:
            axes = width - 1, width
            by = [way * round(array.shape[axis] * _SHIFT) for axis in axes]
            array = np.roll(array, by, axes)
        return np.ascontiguousarray(array)


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
