"""From pixels to what a model takes: scaling, normalisation, layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.sample_options import SampleOptions

LAYOUTS = ("NCHW", "NHWC")
# Numbers of channels that a picture has: grey, colour, colour with transparency.
_PICTURE_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels (unsigned bytes) become input: (pixel * pixel_range / 255 - mean) / std.

    mean, std: one number, or one for each channel, in the unit of `pixel_range`.
    pixel_range: the value of white, 1.0 (as torchvision) or 255.0.
    layout: of the model's input, "NCHW" or "NHWC"; None derives it from its shape.
    resize: for files of pictures. A number is the length of the shorter side, two are (height,
        width); what exceeds the model's input is then cut off evenly at all sides. None
        demands pictures of the right size.

    Data that are floats already are normalised by mean and std, and not scaled.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pixel_range: float = 1.0
    layout: str | None = None
    resize: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if isinstance(values, int | float):
                values = (values,)
            try:
                values = tuple(float(value) for value in values)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{name} must be numbers, not {values!r}") from error
            if not values or not np.isfinite(values).all():
                raise ConfigError(f"{name} must be finite numbers, not {values!r}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, not {min(self.std):g}")
        if self.pixel_range not in (1.0, 255.0):
            raise ConfigError(f"pixel range must be 1 or 255, not {self.pixel_range!r}")
        if max(self.mean) > self.pixel_range:
            raise ConfigError(
                f"mean {max(self.mean):g} lies outside of pixels of 0..{self.pixel_range:g}; "
                "for a mean of pixels of 0..255 choose a pixel range of 255"
            )
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(f"layout {self.layout!r} is not known; choose from NCHW, NHWC")
        sizes = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if self.resize is not None and any(not isinstance(s, int) or s < 1 for s in sizes):
            raise ConfigError(f"resize must be a size or (height, width), not {self.resize!r}")

    @classmethod
    def of(cls, options: SampleOptions) -> Preprocessing:
        """What the options of a step ask for; raises ConfigError as the constructor does."""
        return cls(options.mean, options.std, options.pixel_range, options.layout, options.resize)

    @property
    def normalises(self) -> bool:
        """Whether mean and std change anything."""
        return set(self.mean) != {0.0} or set(self.std) != {1.0}

    def layout_of(self, name: str, shape: Sequence[int]) -> str:
        """The layout of an input of pictures; ConfigError if it has none or it must be told."""
        if len(shape) != 4:
            raise ConfigError(f"input {name} of shape {tuple(shape)} does not take pictures")
        if self.layout is not None:
            return self.layout
        likely = [
            layout
            for layout, axis in (("NCHW", 1), ("NHWC", 3))
            if shape[axis] in _PICTURE_CHANNELS
        ]
        if len(likely) != 1:
            raise ConfigError(
                f"the layout of input {name} of shape {tuple(shape)} is not clear; pass --layout"
            )
        return likely[0]

    def convert(
        self, values: np.ndarray, name: str, shape: Sequence[int], dtype: np.dtype
    ) -> np.ndarray:
        """One sample, without a batch axis, as the model's input `name` takes it.

        `shape` is that of the input with its batch. Pictures with the channels at the
        other end are transposed, grey ones may lack the axis of the channel. Raises
        InputError if shape or dtype do not fit.
        """
        sample = tuple(shape[1:])
        values, channels_at = self._arranged(values, name, sample, shape)
        given = values.dtype
        if dtype.kind == "f":
            if given == np.uint8:
                values = values.astype(np.float32) * np.float32(self.pixel_range / 255)
            elif given.kind != "f":
                raise InputError(f"input {name} takes {dtype}, the data are {given}")
            if self.normalises:
                values = self._normalised(values, name, channels_at)
        elif self.normalises:
            raise ConfigError(f"input {name} takes {dtype}: mean and std do not apply")
        elif given.kind != dtype.kind and not (given.kind in "iu" and dtype.kind in "iu"):
            raise InputError(f"input {name} takes {dtype}, the data are {given}")
        elif given != dtype and values.size and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise InputError(f"input {name} takes {dtype}, the data are beyond its range")
        return np.ascontiguousarray(values, dtype)

    def _arranged(
        self, values: np.ndarray, name: str, sample: tuple[int, ...], shape: Sequence[int]
    ) -> tuple[np.ndarray, int | None]:
        """The values in the model's layout, and the axis of the channels, if it has one."""
        axis = None
        if len(sample) == 3:
            channels = [i for i in (0, 2) if sample[i] in _PICTURE_CHANNELS]
            axis = channels[0] if len(channels) == 1 else None
            if self.layout is not None:
                axis = 0 if self.layout == "NCHW" else 2
        if values.shape == sample:
            return values, axis
        if len(sample) == 3 and values.ndim == 3:
            if axis == 0 and values.shape == (sample[1], sample[2], sample[0]):
                return values.transpose(2, 0, 1), axis
            if axis == 2 and values.shape == (sample[2], sample[0], sample[1]):
                return values.transpose(1, 2, 0), axis
        if axis is not None and sample[axis] == 1 and values.ndim == 2:
            grey = np.expand_dims(values, axis)
            if grey.shape == sample:
                return grey, axis
        raise InputError(
            f"input {name} takes {_sizes(shape)}, the data have samples of {_sizes(values.shape)}"
        )

    def _normalised(self, values: np.ndarray, name: str, axis: int | None) -> np.ndarray:
        mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
        if max(mean.size, std.size) > 1:
            if axis is None:
                raise ConfigError(
                    f"the layout of input {name} is not clear; pass --layout, or one mean and std"
                )
            for option, numbers in (("mean", mean), ("std", std)):
                if numbers.size not in (1, values.shape[axis]):
                    raise ConfigError(
                        f"{option} has {numbers.size} numbers, input {name} has "
                        f"{values.shape[axis]} channels"
                    )
            along = [1] * values.ndim
            along[axis] = -1
            mean, std = mean.reshape(along), std.reshape(along)
        return (values.astype(np.float32) - mean) / std


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
