"""Samples from a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinsmith.compiler.calibration.preprocessing import Preprocessing
from tinsmith.compiler.calibration.source import CalibrationSource, Sample, batches, others, spread
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.inputs import Signature
from tinsmith.compiler.module.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFolderSource(CalibrationSource):
    """The pictures in a folder and its subfolders, in the order of their names.

    Needs Pillow (the extra `calibration`). With `limit`, that many are chosen, evenly
    spaced: `files`. Raises InputError if the folder has no pictures, ConfigError if the model
    does not take one picture.
    """

    def __init__(
        self,
        folder: Path,
        signature: Signature,
        preprocessing: Preprocessing,
        limit: int | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(label or str(folder), signature)
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{self.label}: pictures need Pillow; install tinsmith[calibration]"
            ) from error
        if len(signature) != 1:
            raise ConfigError(
                f"{self.label}: the model takes {len(signature)} inputs, a folder of pictures "
                "gives one; pass an .npz with an array for each"
            )
        ((self._name, (shape, dtype)),) = signature.items()
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._preprocessing = preprocessing
        layout = preprocessing.layout_of(self._name, shape)
        height, width, channels = (shape[i] for i in ((2, 3, 1) if layout == "NCHW" else (1, 2, 3)))
        self._size = (height, width)
        if channels not in _MODES:
            raise ConfigError(f"input {self._name} takes {channels} channels, no pictures")
        self._mode = _MODES[channels]
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
        )
        if not files:
            raise InputError(
                f"{self.label}: the set of samples is empty: no pictures "
                f"({', '.join(suffix[1:] for suffix in SUFFIXES)}) in the folder"
            )
        self.folder = folder
        self._all_files = files
        self._rows = len(files)
        self._chosen = spread(len(files), limit)
        self.files = [files[index] for index in self._chosen]

    @property
    def count(self) -> int:
        return -(-len(self.files) // self._shape[0])

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def chosen(self) -> Sequence[int]:
        return self._chosen

    @property
    def left_out(self) -> Sequence[int]:
        return others(self._rows, self._chosen)

    def with_rows(self, rows: Sequence[int]) -> ImageFolderSource:
        other = copy(self)
        other._chosen = list(rows)
        other.files = [self._all_files[index] for index in rows]
        return other

    def _samples(self) -> Iterator[Sample]:
        for batch in batches(map(self._read, self.files), self._shape[0]):
            yield {self._name: batch}

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with open(open_regular(path), "rb") as stream, Image.open(stream) as opened:
                picture = self._fitted(opened.convert(self._mode), path)
                pixels = np.asarray(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable picture ({error})") from error
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        return self._preprocessing.convert(
            self._in_layout(pixels), self._name, self._shape, self._dtype
        )

    def _in_layout(self, pixels: np.ndarray) -> np.ndarray:
        """Height, width, channels -> the model's layout."""
        layout = self._preprocessing.layout_of(self._name, self._shape)
        return pixels.transpose(2, 0, 1) if layout == "NCHW" else pixels

    def _fitted(self, picture: Image, path: Path) -> Image:
        from PIL import Image

        resize = self._preprocessing.resize
        height, width = self._size
        if isinstance(resize, int):
            share = resize / min(picture.size)
            target = tuple(max(resize, round(side * share)) for side in picture.size)
            picture = picture.resize((target[0], target[1]), Image.Resampling.BILINEAR)
        elif resize is not None:
            picture = picture.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
        if picture.size == (width, height):
            return picture
        if resize is None or picture.width < width or picture.height < height:
            raise InputError(
                f"{path}: {picture.width}x{picture.height} pixels, the model takes {width}x{height}"
                f"; pass --resize {max(height, width)}"
            )
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))
