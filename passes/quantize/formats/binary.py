"""One bit per value: a sign, and a scale for each block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize.formats.base import BlockFormat, Parameters, beyond
from tinsmith.passes.quantize.formats.granularity import FormatError, Granularity, PerChannel

_FIRST_AXIS = PerChannel(0)


@dataclass(frozen=True)
class Binary(BlockFormat):
    """x' = a * sign(x) with a = mean|x| of the block, which minimises the squared error.

    Source: Rastegari et al. 2016, "XNOR-Net: ImageNet Classification Using Binary
    Convolutional Neural Networks", equations 4 to 6 (arXiv:1603.05279). Zero counts as
    positive and is not a level.

    Parameter: `scale` float32. Codes: uint8, 1 for values >= 0 and 0 for negative ones.
    """

    bits: int = 1
    granularity: Granularity = _FIRST_AXIS

    def __post_init__(self) -> None:
        if self.bits != 1:
            raise FormatError(f"a binary code has 1 bit, not {self.bits}")

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        return {"scale": np.abs(blocks).mean(1, dtype=np.float64).astype(np.float32)}

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        return (blocks >= 0).astype(np.uint8)

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale = parameters["scale"][:, None]
        return np.where(codes != 0, scale, -scale)

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        scale = parameters["scale"].astype(np.float64)[:, None]
        return scale + beyond(blocks, -2 * scale, 2 * scale)
