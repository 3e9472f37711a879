"""What every number format offers: fit parameters, encode, decode, and a bound of the error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize.formats.granularity import (
    PER_TENSOR,
    FormatError,
    Granularity,
    arrange,
    flatten,
    join,
    split,
)

Parameters = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class QuantizedArray:
    """Codes of the original's shape, the parameters that give them meaning, and the format."""

    codes: np.ndarray
    parameters: Parameters
    format: NumberFormat

    def dequantize(self) -> np.ndarray:
        """The real values (float32) that the codes stand for."""
        return self.format.decode(self.codes, self.parameters)

    @property
    def storage_bytes(self) -> int:
        """Bytes of the codes, packed without gaps, and of the parameters."""
        packed = (self.codes.size * self.format.bits + 7) // 8
        return packed + sum(parameter.nbytes for parameter in self.parameters.values())


class NumberFormat(ABC):
    """A way to write real numbers with few bits.

    `bits` is the width of a code. Arrays are float32 (others are converted) and finite;
    FormatError otherwise. Formats are frozen dataclasses: equal options, equal format.
    """

    bits: int

    def quantize(self, array: np.ndarray) -> QuantizedArray:
        """`array` in this format, with parameters fitted to it."""
        array = checked(array)
        parameters = self.fit(array)
        return QuantizedArray(self.encode(array, parameters), parameters, self)

    def dequantize(self, quantized: QuantizedArray) -> np.ndarray:
        """The real values (float32) of an array in this format."""
        return self.decode(quantized.codes, quantized.parameters)

    @abstractmethod
    def fit(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters that suit the values of `array`, by name."""

    @abstractmethod
    def encode(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        """Codes of `array` with given parameters; values beyond the levels saturate."""

    @abstractmethod
    def decode(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        """Real values (float32) of codes."""

    @abstractmethod
    def error_bound(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        """For each element, what |x - decode(encode(x))| cannot exceed.

        Within the range of the levels it is half the distance of neighbouring levels;
        beyond the range, the distance to its end is added. The arithmetic itself, in
        float32, may add a few units in the last place.
        """


@dataclass(frozen=True)
class BlockFormat(NumberFormat):
    """A format whose parameters are shared by the elements of a block (see granularity).

    A derived class works on blocks, arrays of shape (blocks, elements), and on parameters
    of shape (blocks, ...).
    """

    bits: int = 8
    granularity: Granularity = PER_TENSOR

    def fit(self, array: np.ndarray) -> dict[str, np.ndarray]:
        array = checked(array)
        if array.size == 0:
            raise FormatError(f"an array of shape {array.shape} has no values to quantise")
        fitted = self._fit_blocks(split(array, self.granularity))
        return {
            name: arrange(values, array.shape, self.granularity) for name, values in fitted.items()
        }

    def encode(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        array = checked(array)
        blocks = split(array, self.granularity)
        codes = self._encode_blocks(blocks, self._flat(parameters, array.shape))
        return join(codes, array.shape, self.granularity)

    def decode(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        blocks = split(codes, self.granularity)
        values = self._decode_blocks(blocks, self._flat(parameters, codes.shape))
        return join(values, codes.shape, self.granularity)

    def error_bound(self, array: np.ndarray, parameters: Parameters) -> np.ndarray:
        array = checked(array)
        blocks = split(array, self.granularity)
        bound = self._bound_blocks(blocks, self._flat(parameters, array.shape))
        return join(np.broadcast_to(bound, blocks.shape), array.shape, self.granularity)

    @abstractmethod
    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray: ...

    @abstractmethod
    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray: ...

    @abstractmethod
    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray: ...

    def _flat(self, parameters: Parameters, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {
            name: flatten(values, shape, self.granularity) for name, values in parameters.items()
        }


def checked(array: np.ndarray) -> np.ndarray:
    """`array` as float32; FormatError if it holds NaN or infinity."""
    array = np.asarray(array)
    if array.dtype != np.float32:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FormatError("an array to quantise holds NaN or infinity")
    return array


def beyond(blocks: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How far each element lies outside of `low` .. `high` (blocks, 1); 0 inside. float64."""
    wide = blocks.astype(np.float64)
    return np.maximum(np.maximum(wide - high, low - wide), 0.0)
